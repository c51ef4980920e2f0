"""A selection: the samples of some shards that are kept, as a small Parquet file beside them.

Columns: `shard` (its name without the folders that the set shares), `row` (int32, of the shard's index) and `key`. Its
metadata say how many samples each shard had, so that a selection is not read against shards that have changed since.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipkit.errors import UserError

if TYPE_CHECKING:
    from clipkit.shards.source import Shards

# what reading a file comes to that is something else
_DAMAGE = (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


class Selection:
    """The kept rows of each shard of a set whose shards are called `names`.

    Raises: UserError when the file is no selection, or names none of these shards.
    """

    def __init__(self, path: str, names: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            table = pq.read_table(path, columns=["shard", "row"])
            self.about: dict[str, Any] = json.loads(table.schema.metadata[b"clipkit"])
            self._had: dict[str, int] = self.about["had"]
            by_name = _rows_of(table, self._had)
        except FileNotFoundError:
            raise UserError(f"{path}: no such selection; `clipkit data filter` and `dedup` write one") from None
        except (*_DAMAGE, pa.ArrowException) as error:
            why = f"not a selection of `clipkit data filter` or `dedup` ({type(error).__name__})"
            raise UserError(f"{path}: {why}") from None
        if not self._had.keys() & set(names):
            raise UserError(f"{path}: selects from {', '.join(sorted(self._had)[:3])}, and not from these shards")
        self._names = list(names)
        self._rows = [by_name.get(name, np.empty(0, np.int32)) for name in names]
        self.digest = hashlib.sha1(b"".join(row.tobytes() for row in self._rows)).hexdigest()

    def chosen(self, shard: int, samples: int) -> np.ndarray:
        """The kept rows, ascending, of a shard that has so many `samples`.

        Raises: UserError when it had another number of them when the selection was made.
        """
        had = self._had.get(self._names[shard])
        if had is not None and had != samples:
            raise UserError(
                f"{self.path}: was made when {self._names[shard]} had {had} samples, now it has {samples}; "
                "make it again"
            )
        return self._rows[shard]


def _rows_of(table: Any, had: dict[str, int]) -> dict[str, np.ndarray]:
    """{shard: its rows, ascending} of a selection's table.

    Raises: ValueError and others where it holds something else than rows that the shards `had`.
    """
    import pyarrow as pa

    shards, numbers = table.column("shard"), table.column("row")
    if numbers.type != pa.int32() or numbers.null_count or shards.null_count or {*map(type, had.values())} != {int}:
        raise ValueError("a shard and a row are needed")
    column = shards.combine_chunks().dictionary_encode()
    called = column.dictionary.to_pylist()
    codes, rows = column.indices.to_numpy(), numbers.to_numpy()
    order = np.lexsort((rows, codes))
    codes, rows = codes[order], rows[order]
    limits = np.array([had[name] for name in called], np.int64)
    twice = (np.diff(codes) == 0) & (np.diff(rows) == 0)
    if len(rows) and (rows.min() < 0 or (rows >= limits[codes]).any() or twice.any()):
        raise ValueError("rows that the shards did not have, or one twice")
    ends = np.searchsorted(codes, np.arange(len(called)), side="right")
    return dict(zip(called, np.split(rows, ends[:-1]) if called else [], strict=True))


def write_selection(
    source: "Shards", numbers: np.ndarray, path: Path, about: dict[str, Any], vectors: np.ndarray | None = None
) -> None:
    """Write the samples with these flat `numbers` of `source` as a selection; `about` says how it was made. `vectors`
    [len(source)], the row of each sample in a vectors folder, becomes the column `number`.

    Raises: OSError when it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = np.sort(np.asarray(numbers, np.int64))
    places = [source.place(int(number)) for number in numbers]
    rows = [source.indexed(shard, row) for shard, row in places]
    keys = [source.key(shard, row) for shard, row in places]
    shards = pa.DictionaryArray.from_arrays(pa.array([shard for shard, _ in places], pa.int32()), source.names)
    had = {name: len(source.files.kept(shard)) for shard, name in enumerate(source.names)}
    facts = {"clipkit": json.dumps({**about, "had": had, "kept": len(numbers), "of": len(source)})}
    table = pa.table({"shard": shards, "row": pa.array(rows, pa.int32()), "key": keys})
    if vectors is not None:
        table = table.append_column("number", pa.array(vectors[numbers], pa.int64()))
    table = table.replace_schema_metadata(facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
