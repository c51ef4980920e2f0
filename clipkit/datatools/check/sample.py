"""Looking at some samples as training would: caption, picture, training view, and the time that takes."""

import copy
import multiprocessing
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clipkit import images
from clipkit.captions import FolderEncode, Tokenizer, WordEncode, clip_encode
from clipkit.datatools.check.sources import Opened, example
from clipkit.errors import reason_of
from clipkit.log import Progress
from clipkit.shards import caption_of, draw_caption, json_object
from clipkit.types import Preprocess

LONGEST = 4096  # tokens of a caption that are counted
CHUNK = 32
BLANK, GREY = 8, 2  # of 255: greatest difference within a blank picture's channels, mean one between a grey one's
SIGNS = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP"}

Place = tuple[int, int, bool]
"""Shard, row, and whether the picture is to be shown."""


@dataclass(frozen=True)
class Look:
    """What was found of one sample; `reason` is why training could not use it, None where it could.

    `texts` are all captions in the wanted places and `weights` how likely each is drawn, `places` those that had one,
    `about` an example of each key of the .json, `seconds` the CPU time from the bytes on disk to the training view.
    Of those to be shown, `view` uint8 [3, S, S] and the caption `drawn` with it are kept.
    """

    sample: str
    shard: int
    reason: str | None
    texts: tuple[str, ...]
    weights: tuple[float, ...]
    places: tuple[str, ...]
    about: dict[str, str]
    bytes: int = 0
    form: str = ""
    size: tuple[int, int] | None = None
    seconds: float = 0.0
    grey: bool = False
    blank: bool = False
    drawn: str = ""
    view: np.ndarray | None = None


@dataclass(frozen=True)
class Looker:
    """Looks at samples of one source."""

    source: Opened
    shape: Preprocess
    crop: tuple[float, float]
    seed: int

    def __call__(self, place: Place) -> Look:
        shard, row, shown = place
        held, caption = self.source.shards, self.source.caption
        reason, texts, weights, places = None, [], [], []
        for one, likely in ({caption: 1.0} if isinstance(caption, str) else caption).items():
            try:
                found = caption_of(held, shard, row, one)
            except (ValueError, OSError) as error:
                reason = reason_of(error)
                continue
            texts += found
            weights += [likely / len(found)] * len(found)
            places.append(one)
        if sum(weights):
            reason = None
        facts = {
            "sample": held.said(shard, row), "shard": shard, "texts": tuple(texts), "places": tuple(places),
            "weights": tuple(weight / (sum(weights) or 1) for weight in weights), "about": self._about(shard, row),
        }  # fmt: skip
        dice = random.Random(f"{self.seed} {shard} {row}")
        data, size, drawn = b"", None, ""
        try:
            if shown and reason is None:
                drawn = draw_caption(held, shard, row, caption, dice)
            began = time.thread_time()
            data = held.read(shard, row, "image")
            size = images.size_of(data)
            view = images.train_view(data, self.shape, self.crop, dice)
            seconds = time.thread_time() - began
        except (ValueError, OSError) as error:
            return Look(**facts, reason=reason or reason_of(error), bytes=len(data), form=_form(data), size=size)
        channels = view.to(torch.int16)
        span = int((channels.amax((1, 2)) - channels.amin((1, 2))).max())
        return Look(
            **facts, reason=reason, bytes=len(data), form=_form(data), size=size, seconds=seconds,
            grey=float((channels[0] - channels[1:]).abs().float().mean()) < GREY, blank=span <= BLANK,
            drawn=drawn, view=view.contiguous().numpy() if shown else None,
        )  # fmt: skip

    def _about(self, shard: int, row: int) -> dict[str, str]:
        try:
            found = json_object(self.source.shards.read(shard, row, "json"))
        except (ValueError, OSError):
            return {}
        return {key: example(value) for key, value in found.items()}


def _form(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for sign, name in SIGNS.items() if data.startswith(sign)), "other")


def choose(source: Opened, most: int, seed: int, shown: int) -> list[Place]:
    """At most `most` samples, one drawn from each of as many equal stretches of the shards that may be read."""
    ends = np.cumsum(source.shards.counts[source.near])
    total = int(ends[-1])
    many = min(most, total)
    dice = np.random.default_rng(seed)
    numbers = np.minimum(((np.arange(many) + dice.random(many)) * total / many).astype(np.int64), total - 1)
    at = np.searchsorted(ends, numbers, side="right")
    rows = numbers - (ends[at] - source.shards.counts[source.near][at])
    spare = shown and shown + shown // 4 + 2  # some may prove unreadable
    to_show = set(np.linspace(0, many - 1, min(spare, many)).astype(int).tolist())
    return [(source.near[a], int(row), i in to_show) for i, (a, row) in enumerate(zip(at.tolist(), rows, strict=True))]


def look(looker: Looker, places: list[Place], workers: int) -> list[Look]:
    """What is found of each place, in their order; by so many processes, or in this one.

    Raises: StorageError when a remote shard is not to be had.
    """
    found: list[Look] = []
    chunks = [places[i : i + CHUNK] for i in range(0, len(places), CHUNK)]
    with Progress("check", len(places), hush_s=3.0) as bar:
        for chunk in _by_processes(looker, chunks, workers) if workers > 1 else _here(looker, chunks):
            found += chunk
            bar.update(len(found))
    return found


def _here(looker: Looker, chunks: list[list[Place]]) -> Iterator[list[Look]]:
    for chunk in chunks:
        with _one_thread():
            done = [looker(place) for place in chunk]
        yield done


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker of training; the time of the thread is then the time of a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _by_processes(looker: Looker, chunks: list[list[Place]], workers: int) -> Iterator[list[Look]]:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, _take, (looker,)) as pool:
        yield from pool.map(_look, chunks)


_mine: list[Looker] = []  # of a process of the pool: sent once, and not with every chunk


def _take(looker: Looker) -> None:
    torch.set_num_threads(1)
    _mine[:] = [looker]


def _look(chunk: list[Place]) -> list[Look]:
    return [_mine[0](place) for place in chunk]


def tokens_of(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """How many tokens each text has before it is cut to the model's context, int64 [n]; LONGEST where it has more."""
    encode: Any = tokenizer.encode
    clean_fn = getattr(encode, "clean_fn", str)
    of_transformers = isinstance(encode, FolderEncode) or hasattr(encode, "tokenizer_mode")
    roomy = encode if of_transformers else _roomy(encode)
    counts: list[int] = []
    for start in range(0, len(texts), 256):
        some = texts[start : start + 256]
        if of_transformers:
            ids = encode.tokenizer([clean_fn(text) for text in some], truncation=False, verbose=False)["input_ids"]
            counts += [min(len(row), LONGEST) for row in ids]
        else:
            used = roomy(some).numpy()[:, ::-1] != tokenizer.pad
            counts += (used.shape[1] - np.argmax(used, axis=1)).tolist()
    return np.array(counts, np.int64)


def _roomy(encode: Any) -> Any:
    """The same tokenizer with room for LONGEST tokens, where it can be told so."""
    inner = encode.tokenizer if isinstance(encode, WordEncode) else encode
    if not hasattr(inner, "context_length"):
        return encode
    roomy = copy.copy(inner)
    roomy.context_length = LONGEST
    return clip_encode(roomy)
