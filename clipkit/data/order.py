"""The order of the samples, as a pure function of position: no state, no I/O, the same on every rank and worker.

Position p of a source lies in epoch p // N at place p % N. Shards are permuted per epoch, and the samples in that shard
order are cut into `lanes` equal runs, from which the places take turns; a run is cut into windows of about `window`
samples, and each window is permuted. Every sample comes exactly once an epoch; the N % lanes left over come last.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_MIX = tuple(np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
AT_ONCE = 1 << 14  # elements permuted together: arrays of 100,000 leave the CPU's cache and take twice the time
ROUNDS = 8  # four rounds are visibly biased for 3 to 5 elements; with eight, positions are uniform (LOG.md)


def mix(*words: np.ndarray | int) -> np.ndarray:
    """A well-stirred uint64 of the words, elementwise over arrays (splitmix64 chained)."""
    state: np.ndarray = np.asarray(np.uint64(0))
    for word in words:
        state = _stir(state, np.asarray(word).astype(np.uint64))
    return state


def _stir(state: np.ndarray, word: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        state = np.asarray(state + word + _MIX[0], np.uint64)
        state ^= state >> np.uint64(30)
        state *= _MIX[1]
        state ^= state >> np.uint64(27)
        state *= _MIX[2]
        state ^= state >> np.uint64(31)
        return state


def permute(i: np.ndarray, n: np.ndarray, *key: np.ndarray | int) -> np.ndarray:
    """Where each `i` of range(n) goes in a permutation chosen by `key`; elementwise, no memory. `i` is int64 [m], and
    what else is an array has its shape or none.

    A Feistel network over the smallest even number of bits that holds n, walked until it lands inside.
    """
    i, n = np.asarray(i, np.int64), np.asarray(n, np.int64)
    bits = np.ceil(np.log2(np.maximum(n, 2).astype(np.float64))).astype(np.int64)
    half, end = np.asarray((bits + 1) // 2).astype(np.uint64), n.astype(np.uint64)
    stirred, none = mix(*key), np.asarray(np.uint64(0))

    def keys(at: slice | np.ndarray) -> list[np.ndarray]:
        here = _at(stirred, at)
        return [_stir(none, _stir(here, np.asarray(np.uint64(r)))) for r in range(ROUNDS)]

    same = keys(slice(None)) if stirred.ndim == 0 else None

    def once(x: np.ndarray, at: slice | np.ndarray) -> np.ndarray:
        h = _at(half, at)
        mask = (np.uint64(1) << h) - np.uint64(1)
        left, right = x >> h, x & mask
        for k in same or keys(at):
            left, right = right, left ^ (_stir(k, right) & mask)
        return (left << h) | right

    out = i.astype(np.uint64)
    for part in _parts(len(i)):
        out[part] = once(out[part], part)
    outside = np.flatnonzero(out >= end)
    while outside.size:
        for part in _parts(len(outside)):
            at = outside[part]
            out[at] = once(out[at], at)
        outside = outside[out[outside] >= _at(end, outside)]
    return out.astype(np.int64)


def _parts(n: int) -> list[slice]:
    return [slice(start, start + AT_ONCE) for start in range(0, n, AT_ONCE)]


def _at(values: np.ndarray, at: np.ndarray | slice) -> np.ndarray:
    return values[at] if values.ndim else values


@dataclass
class Order:
    """position -> (shard, row) for shards of `counts` [S] samples; a `window` of None is the whole run."""

    counts: np.ndarray
    seed: int
    window: int | None
    lanes: int = 1
    _epochs: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.total = int(self.counts.sum())
        self.lanes = max(1, min(self.lanes, self.total))
        self.run = self.total // self.lanes
        self.windows = max(1, round(self.run / self.window)) if self.window else 1

    def __len__(self) -> int:
        return self.total

    def lane(self, positions: np.ndarray) -> np.ndarray:
        """The lane of each position, int64."""
        place = np.asarray(positions, np.int64) % self.total
        return np.where(place < self.run * self.lanes, place % self.lanes, self.lanes - 1)

    def _window(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(number, start, size) of the window at each place of a run; sizes differ by at most one."""
        number = (place * self.windows) // self.run
        start = -(-number * self.run // self.windows)  # ceil(number * run / windows)
        return number, start, -(-(number + 1) * self.run // self.windows) - start

    def _shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(shards in the order of the epoch, where each ends in the concatenation); two epochs are kept, since a
        batch may span two."""
        found = self._epochs.get(epoch)
        if found is None:
            shards = permute(np.arange(len(self.counts)), np.array(len(self.counts)), self.seed, epoch, 2)
            found = shards, np.cumsum(self.counts[shards])
            latest = {e: kept for e, kept in list(self._epochs.items())[-1:]}
            self._epochs = {**latest, epoch: found}  # replaced whole: a thread that fetches ahead reads it too
        return found

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, row), int64 [n] each, of positions int64 [n] in any order, over any epochs."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.total)
        shard, row = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = np.flatnonzero(epochs == epoch)
            place = places[here]
            inside = place.copy()  # the few places after the runs are not shuffled
            in_run = np.flatnonzero(place < self.run * self.lanes)
            at, lane = np.divmod(place[in_run], self.lanes)
            number, start, size = self._window(at)
            inside[in_run] = lane * self.run + start + permute(at - start, size, self.seed, epoch, 1, number, lane)
            shards, ends = self._shards(epoch)
            slot = np.searchsorted(ends, inside, side="right")
            shard[here] = shards[slot]
            row[here] = inside - (ends[slot] - self.counts[shards[slot]])
        return shard, row

    def needs(self, first: int, lanes: range) -> Iterator[tuple[int, int]]:
        """(position from which it is read, shard) of the shards that `lanes` read from position `first` on, in the
        order in which they are needed, without end."""
        for epoch in range(first // self.total, 1 << 62):
            shards, ends = self._shards(epoch)
            starts = ends - self.counts[shards]
            found: list[tuple[int, int]] = []
            for lane in lanes:
                low, high = lane * self.run, (lane + 1) * self.run if lane + 1 < self.lanes else self.total
                touching = np.flatnonzero((starts < high) & (ends > low) & (ends > starts))
                at = np.clip(starts[touching] - low, 0, self.run - 1)
                last = np.clip(ends[touching] - 1 - low, 0, self.run - 1)
                begin = epoch * self.total + self._window(at)[1] * self.lanes + lane
                _, start, size = self._window(last)
                until = epoch * self.total + (start + size) * self.lanes
                if lane + 1 == self.lanes:  # which has the samples left over, at the very end
                    until = np.where(ends[touching] > low + self.run, (epoch + 1) * self.total, until)
                # what ends before `first` is not read again
                found += [
                    (max(int(p), first), int(s))
                    for p, s, u in zip(begin, shards[touching], until, strict=True)
                    if u > first
                ]
            yield from sorted(found)
