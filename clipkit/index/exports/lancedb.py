"""LanceDB: a table in a folder or a bucket, written as one version.

Source: LanceDB's Python reference, `create_table` and `create_index`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from clipkit.errors import UserError
from clipkit.index import exports
from clipkit.index.exports.rows import EXACT, Batch, Export

AT_ONCE = 10_000


def write(rows: Export, place: str, exact: int = EXACT) -> list[str]:
    """Write a table, in place of one of that name that clipkit has written; gives how it is searched. A reader sees the
    old table until all rows are there. Beyond `exact` rows each vector column gets an index.

    Raises: UserError when the table is somebody else's.
    """
    import lancedb
    import pyarrow as pa

    folder, name = exports.split(place, f"lancedb:{place}", "table")
    database = lancedb.connect(folder)
    schema = _schema(rows)
    _refuse_foreign(database, name, schema, place)
    reader = pa.RecordBatchReader.from_batches(schema, _batches(rows, schema))
    table = database.create_table(name, reader, mode="overwrite", on_bad_vectors="null")
    search = "search(VECTOR, vector_column_name='{}').distance_type('dot')"
    told = [f"lancedb: open_table({name!r}).{search.format(column)}" for column in rows.columns.values()]
    if len(rows) > exact:
        for column in rows.columns.values():
            table.create_index(column, config=lancedb.index.IvfPq(distance_type="dot"), replace=True)
        told.append("lancedb: with .nprobes(50).refine_factor(20): words lie apart from all pictures and need more "
                    "than the defaults")  # fmt: skip
    return told


def _schema(rows: Export) -> Any:
    import pyarrow as pa

    vectors = [pa.field(column, pa.list_(pa.float32(), rows.width)) for column in rows.columns.values()]
    return pa.schema([pa.field("id", pa.int64()), *vectors, *rows.schema])


def _refuse_foreign(database: Any, name: str, schema: Any, place: str) -> None:
    try:
        there = database.open_table(name).schema
    except (ValueError, FileNotFoundError):  # there is none
        return
    ours = [field.name for field in schema if field.name == "id" or field.name.endswith("_vector")]
    if any(column not in there.names for column in ours):
        raise UserError(f"--to lancedb:{place}: a table of that name is there and is not clipkit's; give another name")


def _batches(rows: Export, schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    for batch in rows.batches(AT_ONCE, "lancedb"):
        vectors = [_vectors(batch, kind) for kind in rows.columns]
        arrays = [pa.array(batch.ids, pa.int64()), *vectors, *batch.table.combine_chunks().columns]
        yield from pa.Table.from_arrays(arrays, schema=schema).to_batches()


def _vectors(batch: Batch, kind: str) -> Any:
    """A column of vectors, null where there are zeros."""
    import pyarrow as pa

    rows = batch.vectors[kind]
    missing = pa.array(~rows.any(1))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(rows)), rows.shape[1], mask=missing)
