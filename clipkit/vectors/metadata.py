"""What each row of a vectors folder is, as a Parquet file that clip-retrieval reads too."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_TYPES = {
    "image_path": "string", "key": "string", "caption": "string", "shard": "string", "offset": "int64",
    "size": "int64", "sha256": "string", "width": "int32", "height": "int32",
}  # fmt: skip
COLUMNS = tuple(_TYPES)
"""What all metadata have, null where a sample has no such thing: the picture's path, or its key in a shard; its key and
caption; the file that holds its bytes, where in there, and their hash; its size in pixels."""


def as_parquet(records: Sequence[Mapping[str, Any]], fields: Sequence[str] = ()) -> bytes:
    """A Parquet file of the records: COLUMNS and the `fields` that any of them has, for nothing tells the type of
    others. Lists and objects become JSON, and values of several kinds texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        name: pa.array([_plain(each.get(name)) for each in records], getattr(pa, kind)())
        for name, kind in _TYPES.items()
    }
    for name in fields:
        values = [_plain(each.get(name)) for each in records]
        if any(value is not None for value in values):
            columns[name] = _typed(values)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # JSON can spell half of a surrogate pair, Arrow cannot
    return json.dumps(value, default=str) if isinstance(value, list | tuple | dict) else value


def _typed(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        whole = (value if isinstance(value, str | None) else json.dumps(value, default=str) for value in values)
        return pa.array(list(whole), pa.string())
