"""Which row of a vectors folder belongs to which sample of a set of shards."""

from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import UserError
from clipkit.shards import Shards, is_remote
from clipkit.vectors.folder import Vectors


def rows_of(source: Vectors, held: Shards) -> np.ndarray:
    """The row of the folder of each flat number of `held`, int64, -1 where it has none. A sample is known by its
    shard's path and its picture's place in there.

    Raises: UserError when the folder does not tell where its pictures lie, or a shard's pictures lie elsewhere now.
    """
    columns = places(source)
    if columns is None:
        raise UserError(
            f"{source.folder}: its metadata/ do not say where the pictures lie; `clipkit embed` writes that"
        )
    shards, offsets, sizes = columns
    codes = shards.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(shards.dictionary) + 1))
    rows_in = {path: order[bounds[i] : bounds[i + 1]] for i, path in enumerate(shards.dictionary.to_pylist())}
    first, at = np.concatenate([[0], np.cumsum(held.counts)]), np.full(len(held), -1, np.int64)
    for shard, name in enumerate(held.files.names):
        rows = rows_in.get(name if is_remote(name) else str(Path(name).resolve()))
        if rows is None:
            continue
        begins, lengths = held.files.kept(shard).spans["image"]
        by_place = np.argsort(begins, kind="stable")
        found = np.searchsorted(begins[by_place], offsets[rows])
        place = by_place[np.minimum(found, len(begins) - 1)] if len(begins) else np.full(len(rows), -1)
        same = place >= 0
        same[same] = (begins[place[same]] == offsets[rows][same]) & (lengths[place[same]] == sizes[rows][same])
        if not same.all():
            raise UserError(f"{source.folder}: {int((~same).sum())} pictures of {name} lie elsewhere now; embed again")
        seen = place < held.counts[shard]
        at[first[shard] + place[seen]] = rows[seen]
    return at


def places(source: Vectors) -> tuple[Any, np.ndarray, np.ndarray] | None:
    """(the files that hold the pictures as an Arrow dictionary column, offsets, sizes) of all rows, with no file (""),
    -1 and -1 for a row that has no picture in a file; None where there is no other."""
    import pyarrow as pa
    from pyarrow import compute

    wanted = ["shard", "offset", "size"]
    tables = [table for table in source.tables(wanted) if table.num_rows]
    if not tables or any(set(wanted) - set(table.column_names) for table in tables):
        return None
    table = pa.concat_tables([each.select(wanted) for each in tables], promote_options="permissive")
    nowhere = compute.is_null(table.column("offset"))  # type: ignore[attr-defined]
    if table.column("offset").null_count == len(table):
        return None
    files = compute.if_else(nowhere, "", table.column("shard").cast(pa.string()))  # type: ignore[attr-defined]
    offsets, sizes = (table.column(name).fill_null(-1).to_numpy() for name in wanted[1:])
    return files.combine_chunks().dictionary_encode(), offsets, sizes
