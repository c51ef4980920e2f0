"""What the server does, without HTTP: an index and its model, asked by many at once, on few threads."""

import asyncio
import io
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from PIL import Image

from clipkit import classifier, images
from clipkit.errors import UserError
from clipkit.search import Hit, Index, Options, Part, Query
from clipkit.serve.batching import Batcher
from clipkit.serve.limits import Limits
from clipkit.serve.metrics import Metrics
from clipkit.serve.thumbnails import Missing, Place, Thumbnails, kind_of
from clipkit.shards import remote

P = ParamSpec("P")
T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)
LABELS_KEPT = 32  # lists of labels whose embeddings stay in memory
EXAMPLES = 6
LONGEST_EXAMPLE = 60  # letters

Answer = tuple[list[Hit], dict[str, float]]
"""The hits of a query, and the milliseconds that each stage of its batch has taken."""
Labelled = tuple[bytes, tuple[str, ...], tuple[str, ...]]
"""A picture, the labels it is to be told apart by, and their templates."""


@dataclass(frozen=True)
class Found:
    """The hits of one query, how many rows its condition has left, and the milliseconds of its batch's stages."""

    hits: list[Hit]
    of: int
    ms: dict[str, float]


class Service:
    """An opened index behind a queue. One thread works for the model and the index, which use all cores themselves;
    others read pictures and look at conditions, so that nobody waits for what somebody else has asked of a disk."""

    def __init__(self, index: Index, limits: Limits = Limits(), name: str = "index") -> None:  # noqa: B008 (frozen)
        self.index, self.limits, self.name = index, limits, name
        self._model, self._readers, self._conditions, self._far = (
            ThreadPoolExecutor(count, f"clipkit {what}")
            for what, count in (("model", 1), ("pictures", 4), ("conditions", 2), ("remote pictures", 2))
        )
        self._searches = Batcher(self._search, self._model, waiting=limits.waiting)
        self._labelled = Batcher(self._classify, self._model, most=8, waiting=limits.waiting)
        self._words = lru_cache(LABELS_KEPT)(lambda labels, said: classifier.words_of(index.model, labels, said))
        self.thumbnails = Thumbnails()
        self.metrics = Metrics(len(index), self.model_name, lambda: len(self._searches) + len(self._labelled))

    @property
    def model_name(self) -> str:
        """The model as people know it, without the folders that it lies in."""
        said = str(self.index.model_name)
        return Path(said).resolve().name if Path(said).exists() else said

    def close(self, wait_s: float = 10.0) -> bool:
        """End the threads; False when one still works after `wait_s`. What has not begun is left."""
        pools = (self._model, self._readers, self._conditions, self._far)
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        ends = time.monotonic() + wait_s
        threads = [thread for pool in pools for thread in pool._threads]
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def warm_up(self) -> None:
        """Load the model, and do everything once.

        Raises: UserError when the model is not to be had, or is another one.
        """
        words, grey = Query((Part("text", "a picture"),)), _grey()
        for answer in [
            *self._search([(words, Options(kind=kind)) for kind in self.index.stored.kinds]),
            *self._classify([(grey, ("one", "another"), classifier.TEMPLATES)]),
        ]:
            if isinstance(answer, Exception):
                raise answer

    async def search(self, query: Query, options: Options) -> Found:
        """The hits.

        Raises: UserError when the query is none; Full when too many wait.
        """
        for part in query.parts:
            if part.kind == "image":
                assert isinstance(part.value, bytes), "no file of this machine is opened for a query"
                await self._on(self._readers, _check, part.value)
        left = await self._on(self._conditions, self.index.rows_left, options.where)
        hits, ms = await self._searches.ask((query, options))
        return Found(hits, left, ms)

    async def classify(self, data: bytes, labels: Sequence[str], templates: Sequence[str]) -> dict[str, float]:
        """{label: probability} of a picture, best first.

        Raises: UserError when the picture or a template is none; Full when too many wait.
        """
        await self._on(self._readers, _check, data)
        return await self._labelled.ask((data, tuple(dict.fromkeys(labels)), tuple(dict.fromkeys(templates))))

    async def hit(self, number: int) -> Hit:
        """The row with a number, with the score 1.

        Raises: Missing when there is none.
        """
        removed = self.index.stored.removed
        if not 0 <= number < len(self.index) or (removed is not None and removed[number]):
            raise Missing(f"there is no {number} in this index")
        return Hit.of(1.0, (await self._on(self._readers, self.index.stored.records.get, [number]))[0])

    async def hits(self, numbers: Sequence[int]) -> list[Hit]:
        """The rows with these numbers, as `hit`."""
        return [await self.hit(number) for number in numbers]

    async def place(self, number: int) -> Place:
        """Where the picture of a row lies.

        Raises: Missing.
        """
        return await self._on(self._readers, Place.of, await self.hit(number))

    async def thumbnail(self, place: Place, side: int) -> bytes:
        """A small JPEG.

        Raises: Missing.
        """
        began = time.perf_counter()
        data = await self.read(place, self.thumbnails.jpeg, place, side)
        self.metrics.stages.labels("thumbnail").observe(time.perf_counter() - began)
        return data

    async def media_type(self, place: Place) -> str:
        """Of a picture's file.

        Raises: Missing.
        """
        return await self.read(place, kind_of, place)

    async def read(self, place: Place, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        """Call something on a thread for the disk that a picture lies on; remote ones have threads of their own.

        Raises: Missing when it takes longer than an answer may.
        """
        pool = self._far if remote.is_remote(place.file) else self._readers
        try:
            async with asyncio.timeout(0.9 * self.limits.answer_s):
                return await self._on(pool, work, *args, **more)
        except TimeoutError:
            raise Missing("the file of this picture takes too long to read") from None

    async def examples(self) -> list[str]:
        """Some captions to begin with, from all over the index."""
        numbers = np.unique(np.linspace(0, len(self.index) - 1, min(len(self.index), 10 * EXAMPLES)).astype(int))
        removed = self.index.stored.removed
        kept = [number for number in numbers.tolist() if removed is None or not removed[number]]
        found = await self._on(self._readers, self.index.stored.records.get, kept)
        captions = (" ".join(str(record.get("caption") or "").split()) for record in found)
        return list(dict.fromkeys(text for text in captions if 0 < len(text) <= LONGEST_EXAMPLE))[:EXAMPLES]

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, partial(work, *args, **more))

    def _search(self, asked: Sequence[tuple[Query, Options]]) -> list[Answer | Exception]:
        """Queries for rows of one kind are embedded together, and those with the same options searched together."""
        self.metrics.batches.observe(len(asked))
        queries, options = [query for query, _ in asked], [each for _, each in asked]
        answers: list[Any] = [None] * len(asked)
        for kind, places in _alike(each.kind for each in options).items():
            embed_ms, rows = self._timed("embed", self._embed, [queries[i] for i in places], kind)
            for i, row in zip(places, rows, strict=True):
                answers[i] = row
            good = [i for i in places if not isinstance(answers[i], Exception)]
            for wish, some in _alike(options[i] for i in good).items():
                same = [good[place] for place in some]
                rows = np.stack([answers[i] for i in same])
                for i, answer in zip(same, self._found([queries[i] for i in same], rows, wish, embed_ms), strict=True):
                    answers[i] = answer
        return answers

    def _embed(self, queries: list[Query], kind: str) -> Sequence[np.ndarray | Exception]:
        try:
            return self.index.embed_each(queries, kind)
        except UserError as error:
            return [error] * len(queries)

    def _found(
        self, queries: list[Query], rows: np.ndarray, options: Options, embed_ms: float
    ) -> Sequence[Answer | Exception]:
        try:
            own = [self.index.own(query) for query in queries]
            search_ms, found = self._timed("search", self.index.numbers, rows, options, own)
        except UserError as error:
            return [error] * len(queries)
        records_ms, hits = self._timed("records", self.index.hits, found)
        return [(each, {"embed": embed_ms, "search": search_ms, "records": records_ms}) for each in hits]

    def _classify(self, asked: Sequence[Labelled]) -> list[dict[str, float] | Exception]:
        """{label: probability} of each, best first."""
        answers: list[dict[str, float] | Exception] = []
        for data, labels, templates in asked:
            try:
                words = self._words(labels, templates)
                _, shares = self._timed("classify", classifier.classify_bytes, self.index.model, data, labels, words)
                answers.append(shares)
            except UserError as error:
                answers.append(error)
        return answers

    def _timed(self, stage: str, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> tuple[float, T]:
        """(milliseconds, what it gave)."""
        began = time.perf_counter()
        result = work(*args, **more)
        seconds = time.perf_counter() - began
        self.metrics.stages.labels(stage).observe(seconds)
        return round(1000 * seconds, 1), result


def _alike(names: Iterable[Key]) -> dict[Key, list[int]]:
    """{name: the places at which it stands}, in the order in which they first occur."""
    found: dict[Key, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return found


def _check(data: bytes) -> None:
    """Look at a picture's header before it goes to where all others wait behind it.

    Raises: UserError.
    """
    try:
        images.size_of(data)
    except ValueError as error:
        raise UserError(f"image: {error}; JPEG, PNG, WebP, GIF and BMP pictures can be read") from None


def _grey() -> bytes:
    """A small picture to warm up with."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (120, 120, 120)).save(buffer, "PNG")
    return buffer.getvalue()
