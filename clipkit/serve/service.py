"""What the server does, without HTTP: an index and its model, asked by many at once, on few threads."""

import asyncio
import io
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit import classifier, images, models
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
Asked = tuple[Query, Options, list[Tensor]]
"""A query, how it is answered, and its pictures in their order as the model takes them, uint8 [3, S, S]."""
Labelled = tuple[Tensor, tuple[str, ...], tuple[str, ...]]
"""A picture as the model takes it, the labels it is to be told apart by, and their templates."""


@dataclass(frozen=True)
class Found:
    """The hits of one query, how many rows its condition has left, and the milliseconds of its batch's stages."""

    hits: list[Hit]
    of: int
    ms: dict[str, float]


class Service:
    """An opened index behind a queue. One thread works for the model and the index, which use all cores themselves;
    others read and decode pictures and look at conditions, so that nobody waits for what somebody else has asked."""

    def __init__(self, index: Index, limits: Limits = Limits(), name: str = "index") -> None:  # noqa: B008 (frozen)
        self.index, self.limits, self.name = index, limits, name
        self._pools = self._model, self._readers, self._far, self._sent, self._conditions = tuple(
            ThreadPoolExecutor(count, f"clipkit {what}")
            for what, count in (
                ("model", 1), ("pictures", 4), ("remote pictures", 2), ("pictures sent", 2), ("conditions", 2),
            )
        )  # fmt: skip
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
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        ends = time.monotonic() + wait_s
        threads = [thread for pool in self._pools for thread in pool._threads]
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def warm_up(self) -> None:
        """Load the model, and do everything once.

        Raises: UserError when the model is not to be had, or is another one.
        """
        words, grey = Query((Part("text", "a picture"),)), self._view(_grey())
        for answer in [
            *self._search([(words, Options(kind=kind), []) for kind in self.index.stored.kinds]),
            *self._classify([(grey, ("one", "another"), classifier.TEMPLATES)]),
        ]:
            if isinstance(answer, Exception):
                raise answer

    async def search(self, query: Query, options: Options) -> Found:
        """The hits.

        Raises: UserError when the query is none; Full when too many wait.
        """
        views = [await self._on(self._sent, self._view, part.value) for part in query.parts if part.kind == "image"]
        left = await self._on(self._conditions, self.index.rows_left, options.where)
        hits, ms = await self._searches.ask((query, options, views))
        return Found(hits, left, ms)

    async def classify(self, data: bytes, labels: Sequence[str], templates: Sequence[str]) -> dict[str, float]:
        """{label: probability} of a picture, best first.

        Raises: UserError when the picture or a template is none; Full when too many wait.
        """
        view = await self._on(self._sent, self._view, data)
        return await self._labelled.ask((view, tuple(dict.fromkeys(labels)), tuple(dict.fromkeys(templates))))

    async def hit(self, number: int) -> Hit:
        """The row with a number, with the score 1.

        Raises: Missing when there is none.
        """
        return (await self.hits([number]))[0]

    async def hits(self, numbers: Sequence[int]) -> list[Hit]:
        """The rows with these numbers, as `hit`."""
        removed = self.index.stored.removed
        for number in numbers:
            if not 0 <= number < len(self.index) or (removed is not None and removed[number]):
                raise Missing(f"there is no {number} in this index")
        return await self._on(self._readers, self._recorded, numbers)

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

    def _recorded(self, numbers: Sequence[int]) -> list[Hit]:
        return [Hit.of(1.0, record) for record in self.index.stored.records.get(numbers)]

    def _view(self, data: object) -> Tensor:
        """A picture as the model takes it, uint8 [3, S, S]: made before it goes to where all others wait behind it.

        Raises: UserError when it is none.
        """
        assert isinstance(data, bytes), "no file of this machine is opened for a query"
        try:
            return images.eval_view(data, self.index.model.shape).contiguous()
        except ValueError as error:
            raise UserError(f"image: {error}; {classifier.READABLE}") from None

    def _search(self, asked: Sequence[Asked]) -> list[Answer | Exception]:
        """Queries for rows of one kind are embedded together, and those with the same options searched together."""
        self.metrics.batches.observe(len(asked))
        queries, options = [query for query, _, _ in asked], [each for _, each, _ in asked]
        answers: list[Any] = [None] * len(asked)
        for kind, places in _alike(each.kind for each in options).items():
            embed_ms, rows = self._timed("embed", self._embed, [asked[i] for i in places], kind)
            for i, row in zip(places, rows, strict=True):
                answers[i] = row
            good = [i for i in places if not isinstance(answers[i], Exception)]
            for wish, some in _alike(options[i] for i in good).items():
                same = [good[place] for place in some]
                rows = np.stack([answers[i] for i in same])
                for i, answer in zip(same, self._found([queries[i] for i in same], rows, wish, embed_ms), strict=True):
                    answers[i] = answer
        return answers

    def _embed(self, asked: list[Asked], kind: str) -> Sequence[np.ndarray | Exception]:
        views = [view for *_, some in asked for view in some]
        rows = iter(models.embed_views(self.index.model, torch.stack(views)).numpy() if views else ())
        queries = [
            Query(tuple(replace(p, kind="vector", value=next(rows)) if p.kind == "image" else p for p in query.parts))
            for query, *_ in asked
        ]
        try:
            return self.index.embed_each(queries, kind)
        except UserError as error:
            return [error] * len(asked)

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
        return self._timed("classify", self._shares, asked)[1]

    def _shares(self, asked: Sequence[Labelled]) -> list[dict[str, float] | Exception]:
        rows = models.embed_views(self.index.model, torch.stack([view for view, *_ in asked]))
        answers: list[dict[str, float] | Exception] = []
        for row, (_, labels, templates) in zip(rows, asked, strict=True):
            try:
                shares = classifier.probabilities(self.index.model, row[None], self._words(labels, templates))
                answers.append(classifier.best(labels, shares[0]))
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


def _grey() -> bytes:
    """A small picture to warm up with."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (120, 120, 120)).save(buffer, "PNG")
    return buffer.getvalue()
