"""`clipkit index A B C --merge --out D`: indexes that were built apart, on several hosts, as one.

The FAISS files stay as they are, side by side, and are searched one after the other: FAISS adds the lists of one index
to those of another only where both were trained as one, and indexes that were built apart were not. `--compact` trains
anew and makes one file of all rows.
"""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import UserError
from clipkit.index import changes
from clipkit.log import Progress, say
from clipkit.vectors import Stored, placing
from clipkit.vectors.joined import KEPT, chosen, metadata_name, same_model
from clipkit.vectors.recording import write as write_records
from clipkit.vectors.records import FILE
from clipkit.vectors.stored import ABOUT, HIDDEN, REMOVED


def merge(places: Sequence[str | Path], out: str | Path) -> dict[str, Any]:
    """Write an index `out` of all rows of the indexes `places`, in their order; gives the facts of its index.json.

    The rows of the second are numbered on from those of the first. Keys may repeat, and that is said.
    Raises: UserError when they are fewer than two, of several models, widths or kinds, or `out` exists.
    """
    if len(places) < 2 or len({Path(place).resolve() for place in places}) < len(places):
        raise UserError("--merge: two or more different indexes are needed, as in `clipkit index A B --merge --out C`")
    parts = [Stored(place) for place in places]
    for part in parts[1:]:
        same_model(parts[0], part)
        if part.kinds != parts[0].kinds:
            told = [f"{each.folder} has {' and '.join(each.kinds)}" for each in (parts[0], part)]
            raise UserError(f"--merge: {told[0]}, {told[1]}; the same kinds are needed")
        if _by_rows(part) != _by_rows(parts[0]):
            raise UserError(f"--merge: {part.folder} ranks its rows otherwise than {parts[0].folder}; build both alike")
    with placing.beside(Path(out), replace=False) as work:
        facts = {
            **parts[0].about,
            "rows": sum(map(len, parts)),
            "vectors": _folders(parts),
            "kinds": {kind: _files(kind, parts, work) for kind in parts[0].kinds},
        }
        _describe(parts, work)
        (work / ABOUT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        Stored(work)  # a part that was changed meanwhile does not fit the others
        if None in [changes.joined(part) for part in parts]:
            say(f"{out}: its recall is not measured, for which all vectors are needed; it is searched by the knobs of "
                "the most careful of its parts")  # fmt: skip
            return facts
        return changes.measured(work)


def _folders(parts: Sequence[Stored]) -> list[dict[str, Any]]:
    """The vectors folders of all rows; none where those of one part are not known."""
    each = [part.about["vectors"] for part in parts]
    return [folder for folders in each for folder in folders] if all(each) else []


def _by_rows(part: Stored) -> dict[str, bool]:
    return {kind: facts.get("rerank") == "rows" for kind, facts in part.about["kinds"].items()}


def _files(kind: str, parts: Sequence[Stored], work: Path) -> dict[str, Any]:
    """Link the FAISS files of a kind, and write which rows are hidden; gives what index.json says of the kind."""
    names = []
    for part in parts:
        for name in part.about["kinds"][kind]["files"]:
            names.append(f"{kind}.{len(names)}.index" if names else f"{kind}.index")
            changes.link(part.folder / name, work / names[-1])
    if (hidden := changes.flags([(changes.hidden(part, kind), len(part)) for part in parts])) is not None:
        np.save(work / HIDDEN.format(kind=kind), hidden)
    each = [part.about["kinds"][kind] for part in parts]
    knobs = _most_careful([facts["knobs"] for facts in each])
    told: dict[str, Any] = {
        name: " + ".join(dict.fromkeys(facts[name] for facts in each)) for name in ("factory", "why")
    }
    told["bytes"] = sum(facts["bytes"] for facts in each)
    return {**each[0], **told, "files": names, "knobs": knobs, "recall": {}, "table": []}


def _most_careful(each: Sequence[dict[str, int]]) -> dict[str, int]:
    """The largest of each knob; an index without lists has none that says how many are probed."""
    found: dict[str, int] = {}
    for knobs in each:
        for name, value in knobs.items():
            found[name] = max(value, found.get(name, value))
    return found


def _describe(parts: Sequence[Stored], work: Path) -> None:
    """Write metadata, records, and which rows are removed and kept."""
    (work / "metadata").mkdir()
    number, rows = 0, 0
    with Progress("records", sum(map(len, parts)), hush_s=2) as bar:
        for part in parts:
            files = sorted((part.folder / "metadata").glob("*.parquet"))
            for path in files:
                changes.link(path, work / "metadata" / metadata_name(number))
                number += 1
            rows = write_records(work / FILE, chosen(files, None), rows)
            bar.update(rows)
    _tell_repeated(work / FILE, rows)
    if (removed := changes.flags([(part.removed, len(part)) for part in parts])) is not None:
        np.save(work / REMOVED, removed)
    if _folders(parts) and any((part.folder / KEPT).is_file() for part in parts):
        kept, before = [], 0
        for part in parts:
            own = part.folder / KEPT
            kept.append(before + (np.load(own, allow_pickle=False) if own.is_file() else np.arange(len(part))))
            before += sum(facts["rows"] for facts in part.about["vectors"])
        np.save(work / KEPT, np.concatenate(kept))


def _tell_repeated(path: Path, rows: int) -> None:
    connection = sqlite3.connect(path)
    try:
        keys = connection.execute("select count(distinct key) from items").fetchone()[0]
    finally:
        connection.close()
    if keys < rows:
        say(f"--merge: {rows - keys} of {rows} rows have a key that another row has too; all of them are found")
