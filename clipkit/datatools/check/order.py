"""How well the order of a run would mix its shards, and what its windows need in the cache."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clipkit.data import Settings
from clipkit.data.mixture import Mixture, shares_of
from clipkit.data.order import Order
from clipkit.data.rows import make_source
from clipkit.datatools.check.sources import Opened

BATCHES = 8
"""Batches of the order that are looked at."""


@dataclass(frozen=True)
class Part:
    """A source's part in a run: `share` of each batch, how often an epoch of the run sees it, and where its shards are
    remote the megabytes of two windows and those of the cache."""

    name: str
    share: float
    epochs: float
    window_mb: float | None
    cache_mb: float | None


@dataclass(frozen=True)
class Mixing:
    """Pairs of a batch that lie in the same shard, as a share of all its pairs, and the shards of a batch; each beside
    what a shuffle of the whole set would give."""

    batches: int
    same_shard: float
    same_shard_ideal: float
    shards: float
    shards_ideal: float


def parts_of(sources: Sequence[Opened], cfg: Settings) -> list[Part]:
    """What each source gives to a run."""
    shares, total = _shares(sources), sum(int(source.counts.sum()) for source in sources)
    return [
        Part(source.name, share, share * total / int(source.counts.sum()), *_window(source, cfg))
        for source, share in zip(sources, (s / sum(shares) for s in shares), strict=True)
    ]


def _shares(sources: Sequence[Opened]) -> tuple[int, ...]:
    return tuple(shares_of({one.name: one.weight or float(one.counts.sum()) for one in sources}).values())


def _window(source: Opened, cfg: Settings) -> tuple[float | None, float | None]:
    files = source.shards.files
    if files.cache is None:
        return None, None
    known = [files.kept(shard).about["bytes"] for shard in source.near]
    total, order = int(source.counts.sum()), Order(source.counts, 0, cfg.window, cfg.lanes)
    window = min(cfg.window or total, order.run)
    shards = order.lanes * (-(-window * len(source.counts) // total) + 1)  # a window begins and ends inside of shards
    return min(2 * shards, len(source.counts)) * float(np.mean(known)) / 1e6, files.cache.limit / 1e6


def mixing_of(sources: Sequence[Opened], cfg: Settings, seed: int) -> Mixing:
    """How well some batches, spread over the first epoch, are mixed: from the very order that the run would take."""
    shares, batch = _shares(sources), cfg.batch
    mixture = Mixture(shares)
    orders = [_order(source, cfg, seed) for source in sources]
    steps = max(1, sum(len(order) for order in orders) // batch)
    chosen = sorted({i * steps // BATCHES for i in range(BATCHES)})
    same, shards = [], []
    for step in chosen:
        which, place = mixture.split(np.arange(step * batch, (step + 1) * batch))
        counts = np.concatenate(
            [np.unique(order.locate(place[which == k])[0], return_counts=True)[1] for k, order in enumerate(orders)]
        )
        same.append(float((counts * (counts - 1)).sum()) / max(batch * (batch - 1), 1))
        shards.append(len(counts))
    ideal_same = ideal_shards = 0.0
    for source, part in zip(sources, shares, strict=True):
        share, total, counts = part / sum(shares), int(source.counts.sum()), source.counts.astype(np.float64)
        ideal_same += share**2 * float((counts * (counts - 1)).sum()) / max(total * (total - 1), 1)
        ideal_shards += float((1 - (1 - counts / total) ** (batch * share)).sum())
    return Mixing(len(chosen), float(np.mean(same)), ideal_same, float(np.mean(shards)), ideal_shards)


def _order(source: Opened, cfg: Settings, seed: int) -> Order:
    order = make_source(source.name, source.shards, source.caption, cfg, seed).order
    return replace(order, counts=source.counts, _epochs={})
