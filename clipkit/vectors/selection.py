"""A selection of the rows of a vectors folder: a Parquet file that `clipkit index --select` reads.

Columns: `number` (of the row) and `key`. Of pictures in shards it is a selection of samples as well, which training
reads (`data.select`): `shard` and `row`, see shards/selection.py. Of pictures in files it is a table for
`clipkit data pack`: `image` (the path) and `caption`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError
from clipkit.log import say
from clipkit.shards import Shards, write_selection
from clipkit.vectors.folder import Vectors
from clipkit.vectors.in_shards import places, rows_of
from clipkit.vectors.joined import Joined

COMPARED = 1000  # keys
_DAMAGE = (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


def refuse_existing(*paths: str | Path | None) -> None:
    """Make the folders of files that are to be written, before the work.

    Raises: UserError when something lies in a file's place; StorageError when its folder cannot be made.
    """
    for path in filter(None, paths):
        try:
            if Path(path).exists():
                raise UserError(f"{path}: already exists and is left as it is; remove it, or give another name")
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error


def keys_of(source: Vectors) -> list[str]:
    """The key of each row; where the metadata have none, clip-retrieval's `image_path`."""
    keys: list[str] = []
    for table in source.tables(["key", "image_path"]):
        names = table.column_names
        named = "key" if "key" in names else "image_path" if "image_path" in names else None
        keys += [str(key) for key in table.column(named).to_pylist()] if named else [""] * table.num_rows
    return keys


def write(path: Path, source: Vectors, numbers: np.ndarray, about: Mapping[str, Any], shards: str | None = None) -> str:
    """Write a selection of these rows of a vectors folder, which says `about` itself how it was made; gives what reads
    it. `shards` are those that the folder was made of, where they lie elsewhere now.

    Raises: UserError when `shards` are not those of the folder; StorageError when it cannot be written.
    """
    numbers = np.sort(np.asarray(numbers, np.int64))
    facts = {**about, "vectors": str(source.folder.resolve()), "rows": len(source)}
    found = places(source)
    names = [name for name in ([] if found is None else found[0].dictionary.to_pylist()) if name]
    tarred = [name for name in names if name.endswith(".tar")]
    try:
        if shards or (tarred and found is not None and (found[1] >= 0).all()):  # rows of captions alone train nothing
            held = _opened(source, shards)
            if held is not None:
                at = rows_of(source, held)
                _refuse_missing(source, held, at, numbers)
                write_selection(held, np.flatnonzero(np.isin(at, numbers)), path, {**facts, "source": held.pattern}, at)
                return "index and training"
        _write_table(path, source, numbers, facts, bool(names) and not tarred)
        return "index" if tarred or not names else "index and data pack"
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error


def _opened(source: Vectors, shards: str | None) -> Shards | None:
    """The shards that the folder was made of; None, and told, where it names none that are there."""
    pattern = shards or source.about.get("source")
    hint = "training cannot read the selection, the index can; --shards SHARDS names them"
    if not isinstance(pattern, str):
        say(f"{source.folder}: does not name its shards: {hint}")
        return None
    try:
        return Shards(pattern)
    except UserError as error:
        if shards:
            raise
        say(f"{error}: {hint}")
        return None


def _refuse_missing(source: Vectors, held: Shards, at: np.ndarray, numbers: np.ndarray) -> None:
    missing = len(np.setdiff1d(numbers, at))
    if missing:
        raise UserError(
            f"{source.folder}: {missing} of {len(numbers)} rows are of no sample of {held.pattern}; "
            "--shards SHARDS names those that it was made of"
        )


def _write_table(path: Path, source: Vectors, numbers: np.ndarray, facts: dict[str, Any], files: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = keys_of(source)
    columns: dict[str, Any] = {"number": pa.array(numbers), "key": [keys[number] for number in numbers.tolist()]}
    if files:
        for name, of in (("image", "shard"), ("caption", "caption")):
            values = source.column(of)
            columns[name] = pa.array([values[number] for number in numbers.tolist()], pa.string())
    about = {"clipkit": json.dumps({**facts, "kept": len(numbers)})}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(pa.table(columns).replace_schema_metadata(about), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def numbers(path: str | Path, source: Vectors) -> np.ndarray:
    """The rows, int64 ascending, that a selection keeps of a vectors folder.

    Raises: UserError when it is none, one of another folder, or keeps nothing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        if "number" not in table.column_names:
            raise UserError(
                f"{path}: selects samples of shards and no rows of vectors; `clipkit dedup VECTORS` and `cluster` do"
            )
        rows = json.loads((table.schema.metadata or {})[b"clipkit"])["rows"]
        chosen = table.column("number").to_numpy().astype(np.int64, casting="safe")
        keys = table.column("key").to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path}: no such selection; `clipkit dedup VECTORS` and `cluster` write one") from None
    except (*_DAMAGE, pa.ArrowException) as error:
        why = f"not a selection of `clipkit dedup` or `cluster` ({type(error).__name__})"
        raise UserError(f"{path}: {why}") from None
    order = np.argsort(chosen, kind="stable")
    chosen = chosen[order]
    if not len(chosen) or chosen[0] < 0 or (np.diff(chosen) == 0).any():
        raise UserError(f"{path}: rows from 0 on are needed, each once, and at least one")
    some = np.unique(np.linspace(0, len(chosen) - 1, min(COMPARED, len(chosen))).astype(int))
    if rows != len(source) or chosen[-1] >= rows or _keys(source, chosen[some]) != [keys[i] for i in order[some]]:
        raise UserError(f"{path}: was made of other vectors than {source.folder}; make it again")
    return chosen


def rows_of_one(folders: Sequence[str], path: str) -> Joined:
    """The rows that a selection keeps of the one vectors folder that is named, to build an index of.

    Raises: UserError when several are named, and as `numbers`.
    """
    if len(folders) != 1:
        raise UserError("--select: one vectors folder is needed, the one that the selection was made of")
    return Joined(folders, numbers(path, Vectors(folders[0])))


def _keys(source: Vectors, chosen: np.ndarray) -> list[str]:
    keys = keys_of(source)
    return [keys[number] for number in chosen.tolist()]
