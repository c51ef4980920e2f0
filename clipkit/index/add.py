"""`clipkit index VECTORS --add INDEX`: rows of another vectors folder behind those that an index has.

Nothing is trained: the new rows are coded as the old ones are, and the recall is measured again over all of them. Where
they are of another kind than what the index was trained on, that is where it shows.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import UserError
from clipkit.index import changes
from clipkit.log import Progress, say
from clipkit.vectors import Stored, engine, placing
from clipkit.vectors.joined import KEPT, Joined, same_model, write_metadata
from clipkit.vectors.recording import write as write_records
from clipkit.vectors.records import FILE
from clipkit.vectors.stored import ABOUT, HIDDEN, REMOVED

AT_ONCE = 10_000  # keys looked up in one go


def add(source: str | Path, place: str | Path) -> dict[str, Any]:
    """Append the rows of the vectors folder `source` to the index `place`; gives the facts of its index.json.

    The index that was there is replaced in one step when all is written: who has it open goes on with the old one.
    The last FAISS file of each kind is read and written as a whole, the others are not touched.
    Raises: UserError when the folder is of another model or width, lacks a kind of vectors that the index has, or is in
    the index already.
    """
    place, new = Path(place), Joined([source])
    with changes.alone(place):
        stored = Stored(place)
        _refuse(new, stored)
        _tell_repeated(new, stored)
        facts = _facts(stored, new)
        with placing.beside(place, replace=True) as work:
            for kind in stored.kinds:
                _extend(kind, stored, new, work)
            _describe(stored, new, work)
            (work / ABOUT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
            return _measured(work, stored, place, facts)


def _facts(stored: Stored, new: Joined) -> dict[str, Any]:
    """What index.json says before anything is measured again."""
    rows, folders = len(stored) + len(new), stored.about["vectors"]
    kinds = {}
    for kind, about in stored.about["kinds"].items():
        kinds[kind] = {**about, "bytes": about["bytes"] * rows // len(stored)}
    return {**stored.about, "rows": rows, "vectors": folders and [*folders, *new.folders], "kinds": kinds}


def _refuse(new: Joined, stored: Stored) -> None:
    same_model(stored, new)
    if not len(new):
        raise UserError(f"{new.folder}: holds no rows, there is nothing to add")
    if missing := [kind for kind in stored.kinds if kind not in new.kinds]:
        raise UserError(f"{new.folder}: has no vectors of kind {missing[0]}, which {stored.folder} is searched by")
    if more := [kind for kind in new.kinds if kind not in stored.kinds]:
        say(f"{new.folder}: its vectors of kind {more[0]} are left out, {stored.folder} has none")
    if new.folders[0]["folder"] in [facts["folder"] for facts in stored.about["vectors"]]:
        raise UserError(f"{new.folder}: is in {stored.folder} already; a vectors folder is added once")


def _tell_repeated(new: Joined, stored: Stored) -> None:
    """Say how many keys are in the index already: both rows are kept."""
    repeated, first = 0, 0
    for table in new.tables(["key", "image_path"]):
        name = "key" if "key" in table.column_names else "image_path"
        if name not in table.column_names:
            return
        keys = [str(key) for key in table.column(name).to_pylist()]
        for start in range(0, len(keys), AT_ONCE):
            repeated += len(stored.records.with_keys(keys[start : start + AT_ONCE]))
        first += table.num_rows
    if repeated:
        say(f"{new.folder}: {repeated} of {first} keys are in {stored.folder} already; both rows are found from now on")


def _extend(kind: str, stored: Stored, new: Joined, work: Path) -> None:
    """Write the FAISS files of a kind with the new rows in the last of them, and which rows are hidden."""
    *whole, last = stored.about["kinds"][kind]["files"]
    for name in whole:
        changes.link(stored.folder / name, work / name)
    empty: list[np.ndarray] = []

    def rows() -> Iterator[tuple[int, np.ndarray]]:
        with Progress(f"add {kind}s", len(new), hush_s=2) as bar:
            for first, block in new.blocks(kind):
                empty.append(np.asarray(~block.any(1)))
                yield first, block
                bar.update(first + len(block))

    index = engine.read(stored.folder / last, mapped=False)
    engine.fill(index, rows())
    engine.write(index, work / last)
    without = np.concatenate(empty)
    parts = [(changes.hidden(stored, kind), len(stored)), (without if without.any() else None, len(new))]
    if (hidden := changes.flags(parts)) is not None:
        np.save(work / HIDDEN.format(kind=kind), hidden)


def _describe(stored: Stored, new: Joined, work: Path) -> None:
    """Write metadata, records, and which rows are removed and kept."""
    (work / "metadata").mkdir()
    old = sorted((stored.folder / "metadata").glob("*.parquet"))
    for path in old:
        changes.link(path, work / "metadata" / path.name)
    write_metadata(new, work / "metadata", len(old))
    shutil.copyfile(stored.folder / FILE, work / FILE)
    write_records(work / FILE, new.tables(), len(stored))
    if (removed := changes.flags([(stored.removed, len(stored)), (None, len(new))])) is not None:
        np.save(work / REMOVED, removed)
    if (stored.folder / KEPT).is_file():
        all_before = sum(facts["rows"] for facts in stored.about["vectors"])
        kept = np.load(stored.folder / KEPT, allow_pickle=False)
        np.save(work / KEPT, np.concatenate([kept, np.arange(all_before, all_before + len(new))]))


def _measured(work: Path, stored: Stored, place: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Measure the recall over all rows; says so where it cannot be, or is lower than was asked for."""
    if changes.joined(stored) is None:
        for kind in facts["kinds"].values():
            kind.update(recall={}, table=[])
        (work / ABOUT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        say(f"{place}: the recall over all rows is not measured, for which the vectors of all of them are needed")
        return facts
    found = changes.measured(work)
    for kind, about in found["kinds"].items():
        if about["recall"].get("met") is False:
            unmet = f"{place}: the recall of {kind}s that was asked for is not reached any more"
            say(f"{unmet}; `clipkit index {place} --compact` trains anew on all rows")
    return found
