"""An index folder, opened: what `search`, `serve` and the tuning of an index ask.

INDEX/image.index · text.index: FAISS files (image.1.index, ... where one would not fit), read by FAISS alone
INDEX/metadata/metadata_000000.parquet: what each row is, as in the vectors folder; a row's number is FAISS's id
INDEX/records.sqlite: the same, to look up · INDEX/removed.npy: rows that are not found any more (bool [n])
INDEX/index.json: model, factories, knobs, what they were measured to find, and where the vectors lie; written last
"""

import json
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError
from clipkit.vectors import engine
from clipkit.vectors.engine import Engine, Knobs
from clipkit.vectors.folder import Vectors
from clipkit.vectors.records import FILE, Records

ABOUT = "index.json"
FORMAT = 2
REMOVED = "removed.npy"
FEW, SHARE = 20_000, 0.02
"""So many rows, or so large a share of all, are compared one by one: what scans all of them first would cost more."""
CONDITIONS = 32  # whose rows are remembered
MADE_BY = "`clipkit index VECTORS --out INDEX` makes one"

Found = tuple[np.ndarray, np.ndarray]
"""(scores float32, numbers int64) [Q, k], best first, -1 where there are fewer."""


class Stored:
    """An index folder of pictures, texts or both, searched by vectors. Any number of threads may ask at once.

    Raises: UserError when it is none; StorageError when a part of it is missing or damaged.
    """

    def __init__(self, folder: str | Path, mapped: bool = True) -> None:
        self.folder = Path(folder)
        self.about = about(self.folder)
        self.kinds = tuple(self.about["kinds"])
        self._parts = {kind: self._opened(kind, mapped) for kind in self.kinds}
        self.records = Records(self.folder / FILE)
        if len(self.records) != len(self):
            raise StorageError(f"{self.folder}: {len(self)} rows but records of {len(self.records)}; build it again")
        self._lock = Lock()
        self._conditions: OrderedDict[str | None, np.ndarray | None] = OrderedDict()

    def _opened(self, kind: str, mapped: bool) -> list[tuple[int, Engine]]:
        """(number of its first row, engine) of each file."""
        facts, parts, first = self.about["kinds"][kind], [], 0
        for name in facts["files"]:
            part = Engine(engine.read(self.folder / name, mapped), Knobs(**facts["knobs"]))
            parts.append((first, part))
            first += len(part)
        if first != self.about["rows"]:
            raise StorageError(f"{self.folder}: {first} rows in {kind}.index, {self.about['rows']} by {ABOUT}")
        return parts

    def __len__(self) -> int:
        return self.about["rows"]

    @property
    def width(self) -> int:
        """D."""
        return self.about["width"]

    @cached_property
    def removed(self) -> np.ndarray | None:
        """Rows that are not to be found any more, bool [n]; None where there are none."""
        path = self.folder / REMOVED
        return np.load(path, allow_pickle=False) if path.is_file() else None

    @cached_property
    def vectors(self) -> list[tuple[int, Vectors]]:
        """(number of the first row, folder) of the vectors that the index was built of.

        Raises: UserError when they are not where they were.
        """
        found, first = [], 0
        for facts in self.about["vectors"]:
            found.append((first, Vectors(facts["folder"])))
            first += facts["rows"]
        return found

    def allowed(self, where: str | None = None) -> np.ndarray | None:
        """The rows that may be found under a condition over the records (`Records.where`), bool [n]; None: all."""
        with self._lock:
            if where in self._conditions:
                self._conditions.move_to_end(where)
                return self._conditions[where]
        found = None if self.removed is None else ~self.removed
        if where is not None:
            kept = np.zeros(len(self), bool)
            kept[self.records.where(where)] = True
            found = kept if found is None else kept & found
        with self._lock:
            self._conditions[where] = found
            if len(self._conditions) > CONDITIONS:
                self._conditions.popitem(last=False)
        return found

    def nearest(self, kind: str, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Found:
        """The rows of a kind nearest to unit queries [Q, D], among those `allowed` (bool [n]; None: all, `allowed()`
        knows which were removed)."""
        queries = np.ascontiguousarray(queries, np.float32)
        if allowed is not None and (count := int(np.count_nonzero(allowed))) <= max(FEW, int(SHARE * len(self))):
            numbers = np.flatnonzero(allowed)
            scores = queries @ self.rows(kind, numbers).T
            return _best(scores, np.broadcast_to(numbers, scores.shape), min(k, count))
        wide = k if not self._ranked_by_rows(kind) else max(k, self._parts[kind][0][1].knobs.candidates or k)
        found = [
            _shifted(part.search(queries, wide, None if allowed is None else allowed[first : first + len(part)]), first)
            for first, part in self._parts[kind]
        ]
        scores, numbers = (np.concatenate(each, 1) for each in zip(*found, strict=True))
        if self._ranked_by_rows(kind):
            scores = self._scored(kind, queries, numbers)
        return _best(scores, numbers, min(k, len(self)))

    def _ranked_by_rows(self, kind: str) -> bool:
        return self.about["kinds"][kind].get("rerank") == "rows"

    def _scored(self, kind: str, queries: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Scores [Q, n] of candidates by the rows on disk; -inf for the number -1."""
        out = np.full(numbers.shape, -np.inf, np.float32)
        for query, row, into in zip(queries, numbers, out, strict=True):
            good = row >= 0
            into[good] = self.rows(kind, row[good]) @ query
        return out

    def rows(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, float32 [n, D], as well as the index keeps them."""
        numbers = np.asarray(numbers, np.int64)
        out = np.empty((len(numbers), self.width), np.float32)
        outside = self._ranked_by_rows(kind)
        for first, part in self.vectors if outside else self._parts[kind]:
            here = (numbers >= first) & (numbers < first + len(part))
            if here.any():
                at = numbers[here] - first
                out[here] = part.take(kind, at) if isinstance(part, Vectors) else part.rows(at)
        return out


def about(folder: Path) -> dict[str, Any]:
    """What an index folder says of itself.

    Raises: UserError when it is none, or one of an older clipkit; StorageError when it is damaged.
    """
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


def _shifted(found: Found, first: int) -> Found:
    scores, numbers = found
    return scores, np.where(numbers < 0, -1, numbers + first)


def _best(scores: np.ndarray, numbers: np.ndarray, k: int) -> Found:
    """The k best of each query; of equals the lower number."""
    order = np.lexsort((numbers, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
