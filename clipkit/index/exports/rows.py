"""What every database gets: batches of rows with their vectors and metadata, of one schema."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clipkit.log import Progress
from clipkit.vectors.joined import Joined

EXACT = 100_000
"""Up to so many rows every one of them is compared faster than an index would be looked after."""


@dataclass(frozen=True)
class Batch:
    """Rows first, first + 1, ...: float32 [n, D] of each kind, zeros where a row has nothing of it, and a pyarrow table
    of the metadata."""

    first: int
    vectors: dict[str, np.ndarray]
    table: Any

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def ids(self) -> list[int]:
        """The numbers of the rows."""
        return list(range(self.first, self.first + len(self)))


class Export:
    """The rows of vectors folders as a database takes them. A column of the metadata whose name is taken by ours, `id`
    or `image_vector`, gets a `_` behind it."""

    def __init__(self, source: Joined) -> None:
        self.source = source
        self.columns = {kind: f"{kind}_vector" for kind in source.kinds}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def width(self) -> int:
        """D."""
        return self.source.width

    @cached_property
    def schema(self) -> Any:
        """The pyarrow schema of the metadata of all files; where they disagree the wider type, or text."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        found: dict[str, Any] = {}
        for path in (path for part in self.source.parts for path in part.metadata_files):
            for field in self._ours(pq.read_schema(path)):
                found[field.name] = _wider(found.get(field.name, field.type), field.type)
        return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in found.items()])

    def _ours(self, schema: Any) -> Any:
        """A schema with our names, and with `key`."""
        import pyarrow as pa

        taken, names = {"id", *self.columns.values()}, []
        for name in schema.names:
            while name in taken:
                name += "_"
            taken.add(name)
            names.append(name)
        found = pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])
        return found if "key" in names else found.append(pa.field("key", pa.string()))

    def batches(self, size: int, title: str) -> Iterator[Batch]:
        """All rows in their order, up to `size` at a time, with a bar."""
        first = 0
        with Progress(title, len(self), hush_s=2) as bar:
            for table in self.source.tables():
                table = self._cast(table, first)
                for start in range(0, table.num_rows, size):
                    part = table.slice(start, size)
                    numbers = np.arange(first, first + part.num_rows)
                    yield Batch(first, {kind: self.source.take(kind, numbers) for kind in self.source.kinds}, part)
                    first += part.num_rows
                    bar.update(first)

    def _cast(self, table: Any, first: int) -> Any:
        import pyarrow as pa

        columns = dict(zip(self._ours(table.schema).names, table.columns, strict=False))
        if "key" not in columns:
            paths = columns.get("image_path")
            numbers = pa.array([str(number) for number in range(first, first + table.num_rows)])
            columns["key"] = numbers if paths is None else paths.cast(pa.string())
        empty = pa.nulls(table.num_rows)
        arrays = [columns.get(field.name, empty).cast(field.type, safe=False) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)


def _wider(one: Any, other: Any) -> Any:
    """The pyarrow type of a column that has these two: numbers the wider one, others text."""
    import pyarrow as pa

    if one == other:
        return one
    try:
        both = [pa.schema([("x", kind)]) for kind in (one, other)]
        return pa.unify_schemas(both, promote_options="permissive").field("x").type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()


def plain(value: Any) -> Any:
    """A value of the metadata as JSON can say it: no NaN, bytes and dates as text."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
