"""The order of the samples, as a pure function of position: no state, no I/O, the same on every rank and worker.

Position p of a run lies in epoch p // N at place p % N. Shards are permuted per epoch; the samples in that shard order
are cut into windows of about `window`, and each window is permuted. Every sample comes exactly once an epoch.
"""

from dataclasses import dataclass

import numpy as np

_MIX = tuple(np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
ROUNDS = 8  # four rounds are visibly biased for 3 to 5 elements; with eight, positions are uniform (LOG.md)


def mix(*words: np.ndarray | int) -> np.ndarray:
    """A well-stirred uint64 of the words, elementwise over arrays (splitmix64 chained)."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in words:
            state = np.asarray(state + np.asarray(word).astype(np.uint64) + _MIX[0], np.uint64)
            state = (state ^ (state >> np.uint64(30))) * _MIX[1]
            state = (state ^ (state >> np.uint64(27))) * _MIX[2]
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state, np.uint64)


def permute(i: np.ndarray, n: np.ndarray, *key: np.ndarray | int) -> np.ndarray:
    """Where each `i` of range(n) goes in a permutation chosen by `key`; elementwise, no memory, i and n int64 arrays.

    A Feistel network over the smallest even number of bits that holds n, walked until it lands inside.
    """
    n = np.broadcast_to(np.asarray(n, np.int64), np.shape(i))
    bits = np.ceil(np.log2(np.maximum(n, 2).astype(np.float64))).astype(np.int64)
    half = ((bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [np.broadcast_to(mix(*key, r), np.shape(i)) for r in range(ROUNDS)]

    def once(x: np.ndarray, at: np.ndarray) -> np.ndarray:
        left, right = x >> half[at], x & mask[at]
        for k in keys:
            left, right = right, left ^ (mix(k[at], right) & mask[at])
        return (left << half[at]) | right

    out = np.asarray(i, np.int64).astype(np.uint64).copy()
    left_outside = np.arange(out.size)
    while left_outside.size:
        out[left_outside] = once(out[left_outside], left_outside)
        left_outside = left_outside[out[left_outside] >= n[left_outside].astype(np.uint64)]
    return out.astype(np.int64)


@dataclass(frozen=True)
class Order:
    """position -> (shard, row) for shards of `counts` [S] samples."""

    counts: np.ndarray
    seed: int
    window: int

    def __len__(self) -> int:
        return int(self.counts.sum())

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, row), int64 [n] each, of positions int64 [n] in any order, over any epochs."""
        total = len(self)
        windows = max(1, round(total / self.window))
        epochs, places = np.divmod(np.asarray(positions, np.int64), total)
        shard, row = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            here = np.flatnonzero(epochs == epoch)
            place = places[here]
            number = (place * windows) // total  # windows of equal size up to one sample; start = ceil(number * N / W)
            start = -(-number * total // windows)
            size = -(-(number + 1) * total // windows) - start
            inside = start + permute(place - start, size, self.seed, int(epoch), 1, number)
            shards = permute(np.arange(len(self.counts)), np.array(len(self.counts)), self.seed, int(epoch), 2)
            ends = np.cumsum(self.counts[shards])
            slot = np.searchsorted(ends, inside, side="right")
            shard[here] = shards[slot]
            row[here] = inside - (ends[slot] - self.counts[shards[slot]])
        return shard, row
