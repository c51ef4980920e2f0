"""Streams over small shards, and their global batches put together from all ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipkit.data import Settings, Source, Stream, open_stream
from clipkit.types import Batch, Preprocess
from tests.samples import toy_tokenizer

SHAPE = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Train = Path | str | Mapping[str, Source]


def stream(train: Train, rank: int = 0, world: int = 1, seed: int = 5, **change: Any) -> Stream:
    usual = {"train": dict(train) if isinstance(train, Mapping) else str(train), "batch": 8, "workers": 0, "window": 9}
    return open_stream(Settings(**{**usual, **change}), toy_tokenizer(), SHAPE, seed, rank, world)


def joined(
    train: Train, first: int, end: int, world: int = 1, state: dict[str, Any] | None = None, **change: Any
) -> list[Batch]:
    """The global batches of steps first .. end - 1, put together from all ranks; each takes up `state` where given."""
    ranks = []
    for rank in range(world):
        opened = stream(train, rank, world, **change)
        assert state is None or opened.resume(state) == first
        ranks.append(list(opened.batches(first, end)))
    return [stack(parts) for parts in zip(*ranks, strict=True)]


def stack(parts: tuple[Batch, ...]) -> Batch:
    """One batch of several in a row; texts are as wide as the widest."""
    width = max(part.text.shape[1] for part in parts)
    texts = [torch.nn.functional.pad(part.text, (0, width - part.text.shape[1])) for part in parts]
    replaced = [bad for part in parts for bad in part.replaced]
    images, positions = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "position"))
    return Batch(images, torch.cat(texts), positions, [key for part in parts for key in part.keys], replaced)


def assert_same(found: list[Batch], wanted: list[Batch]) -> None:
    """The same samples, pixels, tokens and replaced samples in the same order."""
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        assert one.keys == two.keys and one.replaced == two.replaced
        for name in ("position", "images", "text"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name


def by_position(batches: list[Batch]) -> list[str]:
    """The keys of all samples, in the order of their positions, which follow one another without a gap."""
    found = sorted(pair for one in batches for pair in zip(one.position.tolist(), one.keys, strict=True))
    start = found[0][0]
    assert [position for position, _ in found] == list(range(start, start + len(found)))
    return [key for _, key in found]
