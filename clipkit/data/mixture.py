"""Several sources in fixed shares: which source has each position, and which of its samples, in closed form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

FINEST = 1 << 16
"""The most positions after which the shares repeat; weights that need more are rounded to this many parts."""


def shares_of(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights above 0 as whole numbers in the same ratio: exactly if their sum is at most FINEST, else nearest to it
    with at least 1 each."""
    exact = {name: Fraction(repr(weight)) for name, weight in weights.items()}
    scale = Fraction(math.lcm(*(w.denominator for w in exact.values())))
    whole = {name: int(w * scale) for name, w in exact.items()}
    common = math.gcd(*whole.values())
    whole = {name: n // common for name, n in whole.items()}
    total = sum(whole.values())
    if total <= FINEST:
        return whole
    parts = {name: max(1, n * FINEST // total) for name, n in whole.items()}
    large = [name for name, n in whole.items() if n * FINEST >= total]  # the others have been rounded up already
    by_rest = sorted(large, key=lambda name: (-(whole[name] * FINEST % total), name))
    for name in by_rest[: max(0, FINEST - sum(parts.values()))]:
        parts[name] += 1
    parts[max(parts, key=lambda name: parts[name])] -= max(0, sum(parts.values()) - FINEST)
    return parts


def schedule(shares: tuple[int, ...]) -> np.ndarray:
    """The source of each position of one period, int64 [sum(shares)]: after any number of positions each source has
    had its share of them to within one.

    Source: Tijdeman, The chairman assignment problem (1980): of the sources that lag enough, the one that must be
    served soonest; the deviation stays at or below 1 - 1 / (2k - 2) for k sources.
    """
    period, k = sum(shares), len(shares)
    if k == 1:
        return np.zeros(period, np.int64)
    slack = 2 * k - 2
    had = [0] * k
    out = np.empty(period, np.int64)
    for t in range(1, period + 1):
        lagging = [i for i in range(k) if slack * (shares[i] * t - had[i] * period) >= period]
        soonest = min(lagging, key=lambda i: ((had[i] * slack + slack - 1) / shares[i], i))
        out[t - 1] = soonest
        had[soonest] += 1
    return out


@dataclass(frozen=True)
class Mixture:
    """Positions from `start` on among sources with whole-number `shares`, which have given `base` samples before."""

    shares: tuple[int, ...]
    start: int = 0
    base: tuple[int, ...] = ()

    @cached_property
    def _period(self) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many of it came before) of each position of a period."""
        source = schedule(self.shares)
        before = np.empty_like(source)
        for k in range(len(self.shares)):
            mine = source == k
            before[mine] = np.arange(int(mine.sum()))
        return source, before

    def split(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, position in that source), int64 [n] each, of positions int64 [n] not before `start`."""
        cycle, slot = np.divmod(np.asarray(positions, np.int64) - self.start, sum(self.shares))
        source, before = (column[slot] for column in self._period)
        shares = np.array(self.shares, np.int64)
        base = np.array(self.base or [0] * len(shares), np.int64)
        return source, base[source] + cycle * shares[source] + before

    def used(self, position: int) -> list[int]:
        """Samples that each source has given before `position`."""
        cycle, slot = divmod(position - self.start, sum(self.shares))
        inside = np.bincount(self._period[0][:slot], minlength=len(self.shares))
        base = self.base or [0] * len(self.shares)
        return [b + cycle * s + int(n) for b, s, n in zip(base, self.shares, inside, strict=True)]

    def reached(self, source: int, place: int) -> int:
        """About the position at which `source` gives its sample number `place`: off by one period at most."""
        base = self.base[source] if self.base else 0
        return self.start + max(0, place - base) * sum(self.shares) // self.shares[source]
