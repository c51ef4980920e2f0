"""`clipkit index INDEX --remove KEY`: rows that are not found any more."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipkit.errors import UserError
from clipkit.index import changes
from clipkit.log import say
from clipkit.vectors import Stored
from clipkit.vectors.stored import REMOVED

SHOWN = 3
LARGE = 0.2
"""The share of removed rows from which on `--compact` is recommended: they are still scanned."""


def remove(place: str | Path, named: Sequence[str]) -> dict[str, int]:
    """Mark all rows of some keys as removed; gives how many rows were `removed` now, how many are in `all`, and how
    many keys are `unknown`.

    A name is a key of the index, or else a text file with one key a line. A mark is one bit: `compact` frees the room.
    Raises: UserError when a name is neither, or none of the keys is there.
    """
    place = Path(place)
    with changes.alone(place):
        stored = Stored(place)
        keys = _keys(stored, named)
        found = stored.records.with_keys(keys)
        unknown = [key for key in keys if key not in found]
        if unknown:
            shown = ", ".join(unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
            if not found:
                raise UserError(f"{place}: none of the {len(keys)} keys is there ({shown}); nothing is removed")
            say(f"{place}: {len(unknown)} of {len(keys)} keys are not there: {shown}")
        marks = np.zeros(len(stored), bool) if stored.removed is None else stored.removed.copy()
        before = int(marks.sum())
        marks[[number for numbers in found.values() for number in numbers]] = True
        _write(place, marks)
    total = int(marks.sum())
    if total >= LARGE * len(marks):
        say(f"{place}: {total} of {len(marks)} rows are removed; `clipkit index {place} --compact` frees their room")
    return {"removed": total - before, "all": total, "unknown": len(unknown)}


def _keys(stored: Stored, named: Sequence[str]) -> list[str]:
    """Keys, each once, in their order. That a key is looked for first matters where keys are paths of files."""
    there = stored.records.with_keys(list(named))
    keys: dict[str, None] = {}
    for name in named:
        if name in there or not os.path.isfile(name):
            keys[name] = None
            continue
        try:
            lines = Path(name).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{name}: neither a key of {stored.folder} nor a text file of keys, one a line") from None
        keys.update(dict.fromkeys(line for line in lines if line))
    if not keys:
        raise UserError(f"{', '.join(named)}: holds no keys, one a line is needed")
    return list(keys)


def _write(place: Path, marks: np.ndarray) -> None:
    beside = place / f".{REMOVED}.tmp"
    with beside.open("wb") as file:
        np.save(file, marks)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(place / REMOVED)
