"""`clipkit index INDEX --compact`: an index built anew of its own rows, without those that are removed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit import distributed
from clipkit.errors import UserError
from clipkit.index import changes
from clipkit.index.build import build
from clipkit.log import say
from clipkit.vectors import Stored
from clipkit.vectors.joined import Joined, Rows, chosen


class Codes(Rows):
    """The rows of an index as its own finest codes keep them, those of the numbers `wanted` (int64 [n], ascending)."""

    def __init__(self, stored: Stored, wanted: np.ndarray) -> None:
        self.stored, self.wanted = stored, wanted
        self.kinds, self.width = stored.kinds, stored.width
        self.folder, self.about = stored.folder, stored.about
        self.folders, self.kept = [], None
        self._hidden = {kind: changes.hidden(stored, kind) for kind in self.kinds}

    def __len__(self) -> int:
        return len(self.wanted)

    def take(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, float32 [n, D], of length 1 again; zeros where there is nothing."""
        at = self.wanted[numbers]
        rows = self.stored.rows(kind, at)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        if (hidden := self._hidden[kind]) is not None:
            rows[hidden[at]] = 0
        return rows

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """The metadata as pyarrow tables."""
        return chosen(sorted((self.stored.folder / "metadata").glob("*.parquet")), self.wanted, columns)


def compact(place: str | Path, **changed: Any) -> dict[str, Any]:
    """Build the index `place` anew of the rows that are not removed; gives the facts of its index.json. It is asked for
    what it was asked for at first, but for what is `changed` (recall, memory, k, engine). The numbers of the rows
    change; their keys do not.

    The rows come from the vectors folders that it was built of. Where these are gone they come from the index's own
    codes, whose rounding then counts twice, and that is said. Under `accelerate launch` the ranks share the work, as in
    `build`.
    Raises: UserError when all rows are removed, or the vectors are gone from an index that ranks by them.
    """
    distributed.join()
    place = Path(place)
    with changes.alone(place):
        stored = Stored(place)
        wanted = np.arange(len(stored)) if stored.removed is None else np.flatnonzero(~stored.removed)
        if not len(wanted):
            raise UserError(f"{place}: all of its {len(stored)} rows are removed; delete the folder instead")
        asked = {**stored.about["asked"], **changed}
        facts = build(_rows(stored, wanted), place, kinds=stored.kinds, replace=True, **asked)
    if len(wanted) < len(stored):
        say(f"{place}: {len(stored) - len(wanted)} removed rows are gone, the others have new numbers")
    return facts


def _rows(stored: Stored, wanted: np.ndarray) -> Rows:
    source = changes.joined(stored)
    if source is not None:
        if len(wanted) == len(stored):
            return source
        kept = wanted if source.kept is None else np.asarray(source.kept)[wanted]
        return Joined([part.folder for part in source.parts], kept)
    by_rows = [kind for kind, facts in stored.about["kinds"].items() if facts.get("rerank") == "rows"]
    if by_rows:
        raise UserError(f"{stored.folder}: ranks by its vectors, and these are needed; put them back where they were")
    say(f"{stored.folder}: built of its own codes, for want of the vectors; their rounding counts twice now")
    return Codes(stored, wanted)
