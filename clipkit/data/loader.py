"""From shards to the batches of this rank. The only state is the position of the next sample.

Global batch s holds positions s*B .. s*B + B - 1 of the order, and rank r of W takes rows r*B/W .. (r+1)*B/W - 1 of it.
A `DataLoader` over a map-style dataset delivers in order, so that neither the number of workers nor their speed can
change what a step sees. It never goes through `accelerator.prepare`, which would drop half of the samples (LOG.md).
"""

import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit import images
from clipkit.captions import Tokenizer
from clipkit.config import settings
from clipkit.data.order import Order, mix
from clipkit.errors import BadData, UserError
from clipkit.log import say
from clipkit.shards import Shards, caption_of, members_for
from clipkit.types import Batch, Preprocess

PART = 256  # rows a worker makes at once: 38 MB of shared memory at 224 pixels
TRIES = 16  # samples tried in place of an unreadable one


@settings
class Settings:
    train: str
    """Shards to train on: a folder, a glob, or a brace pattern such as data/{00000..00012}.tar."""
    caption: str = "txt"
    """Where captions are: txt, or json:KEY for a text or a list of texts (one is drawn each time) under that key."""
    batch: Annotated[int, Field(gt=0)] = 256
    """Pairs of one step, over all ranks."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Worker processes per rank that read and decode; null chooses by the number of cores."""
    window: Annotated[int, Field(gt=0)] = 1 << 18
    """Samples among which order is shuffled; shards are shuffled whole beyond it."""
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.9, 1.0)
    """Least and greatest share of the picture's area that a training crop keeps."""
    max_bad: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of unreadable samples among the last 10,000 (at least 10) at which the run stops."""


@dataclass
class _Rows(Dataset):
    """Item `step * parts + part` -> a part of this rank's batch of `step`; made in the worker processes."""

    source: Shards
    order: Order
    settings: Settings
    tokenizer: Tokenizer
    shape: Preprocess
    seed: int
    rank: int
    world: int

    @property
    def parts(self) -> int:
        """How many items make this rank's batch."""
        return -(-self.settings.batch // self.world // PART)

    def __getitem__(self, item: int) -> Batch:
        step, part = divmod(item, self.parts)
        mine = self.settings.batch // self.world
        first = step * self.settings.batch + self.rank * mine
        positions = np.arange(first + part * PART, first + min(mine, (part + 1) * PART))
        shards, rows = self.order.locate(positions)
        seeds = mix(self.seed, positions, 3)
        side = self.shape.size
        pixels = _shared_uint8((len(positions), 3, side, side))
        texts, keys, replaced = [], [], {}
        for i in range(len(positions)):
            view, caption, key = self._sample(int(shards[i]), int(rows[i]), int(seeds[i]), replaced)
            pixels[i] = view
            texts.append(caption)
            keys.append(key)
        return Batch(pixels, self.tokenizer(texts), torch.from_numpy(positions), keys, replaced)

    def _sample(self, shard: int, row: int, seed: int, replaced: dict[str, int]) -> tuple[Tensor, str, str]:
        """(view, caption, key) of a sample, or of another of its shard chosen by the same seed if it is unreadable."""
        first = ""
        for attempt in range(TRIES):
            dice = random.Random(seed + attempt)
            if attempt:
                row = int(mix(seed, attempt) % np.uint64(self.source.counts[shard]))
            try:
                captions = caption_of(self.source, shard, row, self.settings.caption)
                view = images.train_view(self.source.read(shard, row, "image"), self.shape, self.settings.crop, dice)
            except (ValueError, OSError) as error:
                reason = str(error) if isinstance(error, ValueError) and len(str(error)) < 40 else type(error).__name__
                replaced[reason] = replaced.get(reason, 0) + 1
                first = first or f"{self.source.paths[shard]} key {self.source.key(shard, row)}: {reason}"
            else:
                return view, captions[dice.randrange(len(captions))], self.source.key(shard, row)
        raise BadData(f"{TRIES} samples in a row are unreadable, the first is {first}")


def _shared_uint8(shape: tuple[int, ...]) -> Tensor:
    """A tensor that travels from a worker to the main process without a copy (0.15 against 0.74 ms, LOG.md)."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload]


def _outlive_one_signal(worker: int) -> None:
    """Ctrl-C and Slurm signal the workers too; they must go on feeding the step that the main process still ends and
    saves. A second signal, by which torch gets rid of a stuck worker, ends them."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL) and None)


@dataclass
class _Guard:
    """Counts replaced samples, and ends the run where they are more than `bound` of the last 10,000."""

    bound: float
    total: dict[str, int] = field(default_factory=dict)
    recent: list[tuple[int, int]] = field(default_factory=list)

    def see(self, batch: Batch) -> None:
        for reason, count in batch.replaced.items():
            self.total[reason] = self.total.get(reason, 0) + count
        self.recent.append((len(batch), sum(batch.replaced.values())))
        while sum(rows for rows, _ in self.recent[1:]) >= 10_000:
            self.recent.pop(0)
        rows, bad = (sum(column) for column in zip(*self.recent, strict=True))
        if bad >= 10 and bad > self.bound * rows:
            what = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.total.items()))
            raise BadData(
                f"{bad} of the last {rows} samples are unreadable ({what}), data.max_bad={self.bound} allows fewer; "
                "mend the shards, or raise data.max_bad"
            )


class Stream:
    """The batches of this rank from a step on, and the facts by which a resumed run knows its data again."""

    def __init__(self, rows: _Rows, workers: int) -> None:
        self.rows, self.workers = rows, workers
        self.guard = _Guard(rows.settings.max_bad)

    def __len__(self) -> int:
        """Samples of one epoch."""
        return len(self.rows.source)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps: the samples handed out before `step`, and what to check them against."""
        source, s = self.rows.source, self.rows.settings
        return {
            "version": 1,
            "samples": step * s.batch,
            "seed": self.rows.seed,
            "window": s.window,
            "source": {"shards": len(source.paths), "samples": len(source), "fingerprint": source.fingerprint},
        }

    def check(self, state: dict[str, Any]) -> int:
        """The step to go on from.

        Raises: UserError when the data is no longer what the checkpoint was made with.
        """
        now = self.state(0)
        for fact in ("seed", "window", "source"):
            if state[fact] != now[fact]:
                raise UserError(
                    f"{self.rows.source.pattern}: the run saw {fact} {state[fact]}, now it is {now[fact]}; "
                    "give it the same shards, or start a new run"
                )
        return state["samples"] // self.rows.settings.batch

    def batches(self, first: int, end: int) -> Iterator[Batch]:
        """The batches of steps first .. end - 1; text is cut to the longest caption of each where the tower allows it.

        Raises: BadData when more samples are unreadable than `data.max_bad` allows.
        """
        parts = self.rows.parts
        loader = DataLoader(
            self.rows,
            sampler=range(first * parts, end * parts),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_outlive_one_signal,
        )
        held: list[Batch] = []
        for part in _plainly(loader):
            held.append(part)
            if len(held) == parts:
                batch = _join(held, self.rows.tokenizer)
                held = []
                self.guard.see(batch)
                yield batch


def _plainly(loader: DataLoader) -> Iterator[Batch]:
    """The loader's parts; a worker's BadData arrives wrapped in its traceback, and leaves as its own one line."""
    try:
        yield from loader
    except BadData as error:
        raise BadData(str(error).rpartition("BadData: ")[2].strip()) from None


def _join(parts: list[Batch], tokenizer: Tokenizer) -> Batch:
    replaced: dict[str, int] = {}
    for part in parts:
        for reason, count in part.replaced.items():
            replaced[reason] = replaced.get(reason, 0) + count
    one = len(parts) == 1
    return Batch(
        parts[0].images if one else torch.cat([part.images for part in parts]),
        tokenizer.trim(torch.cat([part.text for part in parts])),
        torch.cat([part.position for part in parts]),
        [key for part in parts for key in part.keys],
        replaced,
    )


def _read_some(source: Shards, caption: str, tries: int = 100) -> None:
    """Read a few captions before the first step, so that a wrong key is told at once and not as many bad samples.

    Raises: UserError naming the keys that are there when not one of them has a caption.
    """
    keys: set[str] = set()
    for number in range(min(tries, len(source))):
        shard, row = source.place(number * len(source) // min(tries, len(source)))
        try:
            caption_of(source, shard, row, caption)
            return
        except (ValueError, OSError):
            keys |= source.json_keys(shard, row)
    there = f"; the .json files have {', '.join(sorted(keys))}" if keys else ""
    raise UserError(f"{source.pattern}: data.caption={caption} finds no caption in the samples tried{there}")


def open_stream(cfg: Settings, tokenizer: Tokenizer, shape: Preprocess, seed: int, rank: int, world: int) -> Stream:
    """The training stream of this rank.

    Raises: UserError when there are no shards, no sample has the wanted members, or `world` does not divide the batch.
    """
    if cfg.batch % world:
        raise UserError(
            f"data.batch: {world} ranks must divide it evenly, got {cfg.batch}; "
            f"try {max(cfg.batch // world, 1) * world}"
        )
    if cfg.crop[0] > cfg.crop[1]:
        raise UserError(f"data.crop: the least share comes first, got {list(cfg.crop)}")
    source = Shards(cfg.train, members_for(cfg.caption))
    _read_some(source, cfg.caption)
    if source.lost:
        say(f"{cfg.train}: {len(source)} samples are usable{source.told_lost()}")
    workers = cfg.workers
    if workers is None:
        workers = max(1, min(8, (os.cpu_count() or 1) // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))
    rows = _Rows(source, Order(source.counts, seed, cfg.window), cfg, tokenizer, shape, seed, rank, world)
    return Stream(rows, workers)
