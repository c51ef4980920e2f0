"""Items of the training stream: a part of this rank's batch of a step, made in the worker processes.

Everything random about a sample is a function of its position: neither ranks nor workers nor a resume change it.
"""

import random
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipkit import images
from clipkit.captions import Tokenizer
from clipkit.data.mixture import Mixture
from clipkit.data.order import Order, mix
from clipkit.data.settings import Settings
from clipkit.data.stages import shorten, stage_at
from clipkit.errors import BadData, reason_of
from clipkit.shards import Choice, Shards, draw_caption
from clipkit.types import Bad, Batch, Preprocess

PART = 256  # rows a worker makes at once: 38 MB of shared memory at 224 pixels
TRIES = 16  # samples tried in place of an unreadable one


@dataclass
class Source:
    """One source of samples: its shards, where its captions are, and its order."""

    name: str
    shards: Shards
    caption: Choice
    order: Order


def make_source(name: str, shards: Shards, caption: Choice, cfg: Settings, seed: int) -> Source:
    """A source whose order depends on its name and not on its neighbours: they may come and go."""
    own = int(mix(seed, zlib.crc32(name.encode())) >> np.uint64(1))
    return Source(name, shards, caption, Order(shards.counts, own, cfg.window, cfg.lanes))


@dataclass
class Rows(Dataset):
    """Item `step * parts + part` -> the Batch of that part of this rank's batch of `step`, as its stage in a run of
    `steps` has it."""

    sources: list[Source]
    mixture: Mixture
    settings: Settings
    tokenizer: Tokenizer
    shape: Preprocess
    seed: int
    rank: int
    world: int
    steps: int = 0
    _steps: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict, repr=False)

    @property
    def mine(self) -> int:
        """Rows of this rank in one batch."""
        return self.settings.batch // self.world

    @property
    def parts(self) -> int:
        """How many items make this rank's batch."""
        return -(-self.mine // PART)

    def positions(self, step: int) -> np.ndarray:
        """The positions of this rank's rows, int64 [mine]. With lanes the rows of a batch come lane by lane, so that
        neighbouring ranks, which share a machine, read few of them."""
        first = step * self.settings.batch
        if self.settings.lanes == 1:
            return np.arange(first + self.rank * self.mine, first + (self.rank + 1) * self.mine)
        if step not in self._steps:
            everyone = np.arange(first, first + self.settings.batch)
            which, place = self.mixture.split(everyone)
            lane = np.empty_like(everyone)
            for k, source in enumerate(self.sources):
                lane[which == k] = source.order.lane(place[which == k])
            by_lane = everyone[np.argsort(lane, kind="stable")]
            self._steps[step] = by_lane[self.rank * self.mine : (self.rank + 1) * self.mine]
            if len(self._steps) > 8:
                self._steps.popitem(last=False)
        return self._steps[step]

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, shard, row), int64 [n] each, of positions int64 [n]."""
        which, place = self.mixture.split(positions)
        shard, row = np.empty_like(place), np.empty_like(place)
        for k in np.unique(which).tolist():
            here = which == k
            shard[here], row[here] = self.sources[k].order.locate(place[here])
        return which, shard, row

    def __getitem__(self, item: int) -> Batch:
        step, part = divmod(item, self.parts)
        positions = self.positions(step)[part * PART : (part + 1) * PART]
        which, shards, rows = self.locate(positions)
        for k in np.unique(which).tolist():
            here = which == k
            self.sources[k].shards.soon(shards[here], rows[here])
        seeds = mix(self.seed, positions, 3).tolist()
        stage = stage_at(self.settings.stages, step, self.steps)
        side = stage.image_size or self.shape.size
        shape = replace(self.shape, size=side)
        pixels = shared_uint8((len(positions), side, side, 3)).permute(0, 3, 1, 2)  # decoders' layout: 8 % less
        texts, keys, bad = [], [], []
        for i, place in enumerate(zip(which.tolist(), shards.tolist(), rows.tolist(), strict=True)):
            text, key = self._sample(*place, seeds[i], shape, pixels[i], bad)
            texts.append(text)
            keys.append(key)
        ids = self.tokenizer(texts)
        ids = shorten(ids, stage.context or ids.shape[1], self.tokenizer.pad)
        return Batch(pixels, ids, torch.from_numpy(positions.copy()), keys, bad)

    def _sample(
        self, which: int, shard: int, row: int, seed: int, shape: Preprocess, out: Tensor, bad: list[Bad]
    ) -> tuple[str, str]:
        """(caption, key) of a sample, its view in `out`; of another of its shard chosen by the same seed where it is
        unreadable."""
        source = self.sources[which]
        held = source.shards
        for attempt in range(TRIES):
            dice = random.Random(seed + attempt)
            if attempt:
                row = int(mix(seed, attempt) % np.uint64(held.counts[shard]))
            try:
                text = draw_caption(held, shard, row, source.caption, dice)
                images.train_view(held.read(shard, row, "image"), shape, self.settings.crop, dice, out)
            except (ValueError, OSError) as error:
                bad.append(Bad(source.name, held.said(shard, row), reason_of(error)))
            else:
                return text, held.key(shard, row)
        first = bad[-TRIES]
        raise BadData(f"{TRIES} samples in a row are unreadable, the first is {first.sample}: {first.reason}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": OrderedDict()}


def shared_uint8(shape: tuple[int, ...]) -> Tensor:
    """A tensor that travels from a worker to the main process without a copy (0.15 against 0.74 ms, LOG.md)."""
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload]
