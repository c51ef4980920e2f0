"""An index that is asked by words and pictures: from queries to hits, with the model in between."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clipkit import models
from clipkit.errors import UserError
from clipkit.log import say
from clipkit.search import narrow
from clipkit.search.asked import Asked, unit
from clipkit.search.hits import Hit
from clipkit.search.query import Image, Query, query
from clipkit.vectors import Stored

POOL, LEAST = 4, 64
"""Of how many times k candidates, and at least so many, different ones are chosen."""
MOST_DIVERSE = 1000
"""Hits that are chosen to differ; each candidate is compared with all."""
DEEPEST = 20_000
"""Nearest rows that are looked at for k that do not look the same."""
Found = tuple[np.ndarray, np.ndarray]
"""(scores float32 [n], numbers int64 [n]), in the order of the hits."""


@dataclass(frozen=True)
class Options:
    """What is found: `k` rows of a kind (image, or text: captions), best first, among those for which the condition
    `where` over the records is true; `unique` leaves out what has that cosine with a better one, `diverse` (0..1) is
    the say of the difference between hits against their scores."""

    k: int = 5
    kind: str = "image"
    where: str | None = None
    unique: float | None = None
    diverse: float | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"search: k of 1 or more is needed, got {self.k}")
        if self.kind not in ("image", "text"):
            raise UserError(f"search: kind is image or text, got '{self.kind}'")
        if self.unique is not None and not 0 < self.unique <= 1:
            raise UserError(f"search: unique is a cosine above 0 and up to 1, got {self.unique}")
        if self.diverse is not None and not 0 <= self.diverse <= 1:
            raise UserError(f"search: diverse is a share from 0 to 1, got {self.diverse}")
        if self.diverse is not None and self.k > MOST_DIVERSE:
            raise UserError(f"search: k of at most {MOST_DIVERSE} is needed with diverse, got {self.k}")


class Index:
    """An index folder, opened: `search` it. The model is loaded when words or pictures first need it."""

    def __init__(self, folder: str | Path, model: str | None = None) -> None:
        self.folder = Path(folder)
        self.stored = Stored(self.folder)
        self._given = model
        self._asked = Asked(self.stored, lambda: self.model)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def model_name(self) -> str | None:
        """Where the model is: as it was given, or as the index says."""
        return self._given or self.stored.about.get("model")

    @cached_property
    def model(self) -> models.DualEncoder:
        """The model whose embeddings the index holds.

        Raises: UserError when it is not to be had, or is another one now.
        """
        name, made_by = self.model_name, self.stored.about.get("digest")
        if not name:
            raise UserError(f"{self.folder}: does not say by which model its vectors were made; name it with --model")
        named = models.Named(name)
        try:
            model = named.model
        except UserError as error:
            if self._given:
                raise
            raise UserError(
                f"{self.folder}: its model is not to be had ({error}); say with --model where it is"
            ) from None
        if model.width != self.stored.width:
            raise UserError(f"{name}: makes vectors of {model.width} numbers, the index has {self.stored.width}")
        if made_by and made_by != named.identity:
            raise UserError(
                f"{self.folder}: its vectors were made by another model than {name} is now ({made_by} then, "
                f"{named.identity} now); give that of then with --model, or embed and index again"
            )
        return model

    def search(
        self,
        text: str | Sequence[str] | None = None,
        image: Image | Sequence[Image] | None = None,
        key: str | Sequence[str] | None = None,
        *,
        id: int | Sequence[int] | None = None,
        without: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        k: int = 5,
        where: str | None = None,
        unique: float | None = None,
        diverse: float | None = None,
        kind: str = "image",
    ) -> list[Hit]:
        """The `k` nearest, best first, to texts, picture files (or their bytes), and rows of the index by key or
        number, taken together by their `weights`, and not to the texts `without`. The other arguments are Options'.

        Raises: UserError when nothing is asked, or something that cannot be read or is not there.
        """
        asked = query(text, image, key, id, without, weights)
        return self.search_many([asked], Options(k, kind, where, unique, diverse))[0]

    def search_many(self, queries: Sequence[Query], options: Options) -> list[list[Hit]]:
        """The hits of each query; a row that a query names by key or number is not among its own.

        Raises: UserError as `search` does.
        """
        vectors = self.embed(queries, options.kind)
        return self.nearest(vectors, options, [self.own(each) for each in queries])

    def embed(self, queries: Sequence[Query], kind: str = "image") -> np.ndarray:
        """The unit vectors float32 [Q, D] of queries for rows of a kind.

        Raises: UserError of the first that has none.
        """
        out = np.empty((len(queries), self.stored.width), np.float32)
        for i, row in enumerate(self.embed_each(queries, kind)):
            if isinstance(row, UserError):
                raise row
            out[i] = row
        return out

    def embed_each(self, queries: Sequence[Query], kind: str = "image") -> list[np.ndarray | UserError]:
        """The unit vector float32 [D] of each query, or why it has none: texts of all queries go through the model
        together, and so do pictures."""
        self._check(kind)
        return self._asked.vectors(queries, kind)

    def own(self, asked: Query) -> list[int]:
        """The numbers of the rows that a query names by key or number.

        Raises: UserError when one is not there.
        """
        return self._asked.own(asked)

    def nearest(
        self, vectors: np.ndarray, options: Options, leave_out: Sequence[Sequence[int]] = ()
    ) -> list[list[Hit]]:
        """The hits of each unit vector [Q, D], without the rows that `leave_out` numbers for it."""
        return self.hits(self.numbers(vectors, options, leave_out))

    def hits(self, found: Sequence[Found]) -> list[list[Hit]]:
        """What `numbers` has found, with its records."""
        records = iter(self.stored.records.get([int(number) for _, numbers in found for number in numbers]))
        return [[Hit.of(score, next(records)) for score in scores] for scores, _ in found]

    def numbers(self, vectors: np.ndarray, options: Options, leave_out: Sequence[Sequence[int]] = ()) -> list[Found]:
        """Scores and numbers of the hits of each unit vector [Q, D], without the rows that `leave_out` numbers for it:
        `k` of them, or as many as there are. Of those that look the same it is `k` among the nearest DEEPEST.
        """
        self._check(options.kind)
        allowed = self.stored.allowed(options.where)
        left = self.rows_left(options.where)
        unwanted = [np.array(each, np.int64) for each in leave_out] or [np.empty(0, np.int64)] * len(vectors)
        wanted = options.k if options.diverse is None else max(POOL * options.k, LEAST)
        deep = min(left, wanted * (1 if options.unique is None else 2) + max(map(len, unwanted), default=0))
        if not deep or not len(vectors):
            return [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in vectors]
        scores, numbers = self.stored.nearest(options.kind, vectors, deep, allowed)
        out = []
        for vector, score, number, own in zip(vectors, scores, numbers, unwanted, strict=True):
            found, depth = _without((score, number), own), deep
            chosen = self._apart(found, options, wanted)
            while options.unique is not None and len(chosen) < wanted and depth < min(left, DEEPEST):
                depth = min(left, DEEPEST, 4 * depth)
                one = self.stored.nearest(options.kind, vector[None], depth, allowed)
                found = _without((one[0][0], one[1][0]), own)
                chosen = self._apart(found, options, wanted)
            if options.unique is not None and len(chosen) < options.k and depth < left:
                say(f"search: the {depth:,} nearest hold {len(chosen)} that differ; no more were looked at")
            out.append((found[0][chosen], found[1][chosen]))
        return out

    def _apart(self, found: Found, options: Options, wanted: int) -> np.ndarray:
        """Places of those among the found that are told."""
        scores, numbers = found

        def rows(some: np.ndarray) -> np.ndarray:
            return unit(self.stored.rows(options.kind, some))

        kept = np.arange(min(len(numbers), wanted))
        if options.unique is not None:
            kept = narrow.unlike(numbers, rows, options.unique, wanted)
        if options.diverse is not None:
            return kept[narrow.diverse(scores[kept], rows(numbers[kept]), options.diverse, options.k)]
        return kept

    def rows_left(self, where: str | None = None) -> int:
        """How many rows may be found under a condition."""
        allowed = self.stored.allowed(where)
        return len(self) if allowed is None else int(np.count_nonzero(allowed))

    def _check(self, kind: str) -> None:
        if kind not in self.stored.kinds:
            raise UserError(f"{self.folder}: holds no {kind} rows, only {', '.join(self.stored.kinds)}")


def open_index(folder: str | Path, model: str | None = None) -> Index:
    """Open the index that `clipkit index` has made; `model` overrides the one it names.

    Raises: UserError when it is none; StorageError when a part of it is missing or damaged.
    """
    return Index(folder, model)


def _without(found: Found, own: np.ndarray) -> Found:
    """Without the rows of these numbers, and the places where nothing was found."""
    scores, numbers = found
    good = (numbers >= 0) & ~np.isin(numbers, own)
    return scores[good], numbers[good]
