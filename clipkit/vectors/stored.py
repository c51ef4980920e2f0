"""An index folder, opened: what `search`, `serve` and the tuning of an index ask.

INDEX/image.index · text.index: FAISS files (image.1.index, ... where one would not fit), read by FAISS alone
INDEX/image.hidden.npy · text.hidden.npy: rows that have no picture, or no caption (bool [n]), where there are such
INDEX/metadata/metadata_000000.parquet: what each row is, as in the vectors folder; a row's number is FAISS's id
INDEX/records.sqlite: the same, to look up · INDEX/removed.npy: rows that are not found any more (bool [n])
INDEX/index.json: model, factories, knobs, what they were measured to find, and where the vectors lie; written last
"""

import json
from collections import OrderedDict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError, StorageError, UserError
from clipkit.vectors import engine, exact
from clipkit.vectors.engine import Engine, Found, Knobs
from clipkit.vectors.joined import KEPT, Joined, same_model
from clipkit.vectors.placing import recover
from clipkit.vectors.records import FILE, Records

ABOUT = "index.json"
FORMAT = 2
REMOVED = "removed.npy"
HIDDEN = "{kind}.hidden.npy"
FEW, SHARE = 20_000, 0.05
"""So many rows, or so large a share of all, are compared one by one: what scans all of them first would cost more."""
AT_ONCE = 4096  # rows of the vectors folder in memory, where they are compared one by one
ASKED = 1024  # queries at once: FAISS keeps the candidates of all
CONDITIONS, REMEMBERED = 32, 256_000_000  # whose rows are remembered, and the bytes of these
MADE_BY = "`clipkit index VECTORS --out INDEX` makes one"


class Stored:
    """An index folder of pictures, texts or both, searched by vectors. Any number of threads may ask at once, and all
    files are opened here: another folder may take its place meanwhile.

    Raises: UserError when it is none; StorageError when a part of it is missing or damaged.
    """

    def __init__(self, folder: str | Path, mapped: bool = True) -> None:
        self.folder = Path(folder)
        self._lock = Lock()
        self._conditions: OrderedDict[str, np.ndarray] = OrderedDict()
        recover(self.folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such folder; {MADE_BY}")
        while True:
            inode = self._inode()
            try:
                self._open(mapped)
            except ClipkitError:
                if inode == self._inode():
                    raise
            if inode == self._inode():  # else another index has taken its place meanwhile
                return

    def _inode(self) -> int:
        """0 between the two renames by which another folder takes its place."""
        try:
            return self.folder.stat().st_ino
        except FileNotFoundError:
            return 0

    def _open(self, mapped: bool) -> None:
        self.about = about(self.folder)
        self.kinds = tuple(self.about["kinds"])
        self.parts = {kind: self._opened(kind, mapped) for kind in self.kinds}
        self.records = Records(self.folder / FILE)
        if len(self.records) != len(self):
            raise StorageError(f"{self.folder}: {len(self)} rows but records of {len(self.records)}; build it again")
        self.removed = self._mask(REMOVED)
        self._there = {kind: self._found_at_all(kind) for kind in self.kinds}
        self._kept = self._rows_kept()

    def _opened(self, kind: str, mapped: bool) -> list[tuple[int, Engine]]:
        """(number of its first row, engine) of each file."""
        facts, parts, first = self.about["kinds"][kind], [], 0
        for name in facts["files"]:
            part = Engine(engine.read(self.folder / name, mapped), Knobs(**facts["knobs"]))
            if part.width != self.width:
                raise StorageError(f"{self.folder / name}: of width {part.width}, {self.width} by {ABOUT}")
            parts.append((first, part))
            first += len(part)
        if first != self.about["rows"]:
            raise StorageError(f"{self.folder}: {first} rows in {kind}.index, {self.about['rows']} by {ABOUT}")
        return parts

    def _mask(self, name: str) -> np.ndarray | None:
        path = self.folder / name
        if not path.is_file():
            return None
        mask = _loaded(path)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise StorageError(f"{path}: bool [{len(self)}] is needed, got {mask.dtype} {list(mask.shape)}")
        return mask

    def _found_at_all(self, kind: str) -> np.ndarray | None:
        hidden = self._mask(HIDDEN.format(kind=kind))
        either = [mask for mask in (self.removed, hidden) if mask is not None]
        return ~np.logical_or.reduce(either) if either else None

    def _rows_kept(self) -> np.ndarray | None:
        path = self.folder / KEPT
        return _loaded(path) if path.is_file() else None

    def __len__(self) -> int:
        return self.about["rows"]

    @property
    def width(self) -> int:
        """D."""
        return self.about["width"]

    @cached_property
    def vectors(self) -> Joined:
        """The rows that the index was built of.

        Raises: UserError when they are not where they were, or others are there.
        """
        found = Joined([facts["folder"] for facts in self.about["vectors"]], self._kept)
        same_model(self, found)
        sizes = [len(part) for part in found.parts]
        if sizes != [facts["rows"] for facts in self.about["vectors"]] or len(found) != len(self):
            raise UserError(f"{self.folder}: its vectors have other rows now ({sizes}); build it again")
        return found

    def knobs(self, kind: str) -> Knobs:
        """How a kind is searched."""
        return self.parts[kind][0][1].knobs

    def allowed(self, where: str | None = None) -> np.ndarray | None:
        """The rows for which a condition over the records (`Records.where`) is true, bool [n], without removed ones;
        None: all."""
        if where is None:
            return None if self.removed is None else ~self.removed
        with self._lock:
            if where in self._conditions:
                self._conditions.move_to_end(where)
                return self._conditions[where]
        found = np.zeros(len(self), bool)
        found[self.records.where(where)] = True
        if self.removed is not None:
            found &= ~self.removed
        with self._lock:
            self._conditions[where] = found
            if len(self._conditions) > max(min(CONDITIONS, REMEMBERED // max(len(self), 1)), 1):
                self._conditions.popitem(last=False)
        return found

    def nearest(
        self, kind: str, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, knobs: Knobs | None = None
    ) -> Found:
        """The rows of a kind nearest to unit queries [Q, D], among those `allowed` (bool [n]; None: all), k or as many
        as there are. What was removed or has nothing of this kind is never found. `knobs` search otherwise than the
        index says."""
        queries = np.ascontiguousarray(queries, np.float32)
        k = min(k, len(self))
        if len(queries) > ASKED:
            pieces = [queries[at : at + ASKED] for at in range(0, len(queries), ASKED)]
            found = [self.nearest(kind, piece, k, allowed, knobs) for piece in pieces]
            return np.concatenate([scores for scores, _ in found]), np.concatenate([numbers for _, numbers in found])
        there = self._there[kind]
        chosen = there if allowed is None else allowed if there is None else allowed & there
        if chosen is not None and self._are_few(kind, int(np.count_nonzero(chosen))):
            return self._nearest_of_few(kind, queries, k, chosen)
        knobs = knobs or self.knobs(kind)
        outside = self._ranked_by_rows(kind)
        share = 1.0 if chosen is None else np.count_nonzero(chosen) / len(chosen)
        wide = knobs.ranked(k, share) if outside else k
        scores, numbers = _together(
            (first, part.search(queries, wide, None if chosen is None else chosen[first : first + len(part)], knobs))
            for first, part in self.parts[kind]
        )
        if outside:
            scores = self._scored(kind, queries, numbers)
        return exact.best(scores, numbers, k)

    def _ranked_by_rows(self, kind: str) -> bool:
        return self.about["kinds"][kind].get("rerank") == "rows"

    def _are_few(self, kind: str, count: int) -> bool:
        return count <= (FEW if self._ranked_by_rows(kind) else max(FEW, SHARE * len(self)))

    def _nearest_of_few(self, kind: str, queries: np.ndarray, k: int, chosen: np.ndarray) -> Found:
        """Each chosen row is compared."""
        if self._ranked_by_rows(kind):
            few = np.flatnonzero(chosen)
            pieces = ((at, self.rows(kind, few[at : at + AT_ONCE])) for at in range(0, len(few), AT_ONCE))
            scores, at = exact.nearest(queries, pieces, k)
            return scores, np.append(few, -1)[at]
        found = _together(
            (first, part.finest(queries, k, chosen[first : first + len(part)])) for first, part in self.parts[kind]
        )
        return exact.best(*found, k)

    def _scored(self, kind: str, queries: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Scores [Q, n] of candidates by the rows on disk; -inf for the number -1."""
        out = np.full(numbers.shape, -np.inf, np.float32)
        for query, row, into in zip(queries, numbers, out, strict=True):
            good = np.flatnonzero(row >= 0)
            good = good[np.argsort(row[good])]  # as they lie on the disk
            into[good] = self.rows(kind, row[good]) @ query
        return out

    def rows(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, float32 [n, D], as well as the index keeps them."""
        numbers = np.asarray(numbers, np.int64)
        if self._ranked_by_rows(kind):
            return self.vectors.take(kind, numbers)
        out = np.empty((len(numbers), self.width), np.float32)
        for first, part in self.parts[kind]:
            here = (numbers >= first) & (numbers < first + len(part))
            if here.any():
                out[here] = part.rows(numbers[here] - first)
        return out


def about(folder: Path) -> dict[str, Any]:
    """What an index folder says of itself.

    Raises: UserError when it is none, or one of an older clipkit; StorageError when it is damaged.
    """
    recover(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {MADE_BY}")
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        version = found.get("format")
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no {ABOUT}; {MADE_BY}") from None
    except (ValueError, AttributeError) as error:
        raise StorageError(f"{folder / ABOUT}: damaged ({error})") from None
    if version != FORMAT:
        raise UserError(f"{folder}: is of another version of clipkit; build it again from its vectors")
    return found


def _loaded(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise StorageError(f"{path}: not a readable array of numbers ({error})") from None


def _together(found: Iterator[tuple[int, Found]]) -> Found:
    """What several files found, side by side, under the numbers of all rows."""
    parts = [(scores, np.where(numbers < 0, -1, numbers + first)) for first, (scores, numbers) in found]
    return np.concatenate([scores for scores, _ in parts], 1), np.concatenate([numbers for _, numbers in parts], 1)
