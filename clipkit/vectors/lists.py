"""Rows in lists around centres, so that each is compared with few others: those of the lists nearest to it.

How many lists that must be is not guessed: rows of the set are moved towards others until their cosine with what they
were is the threshold, and so many lists are looked at that FOUND of these pairs are met.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipkit.log import Progress

TILE = 2048
SLACK = 1e-6  # that rounding to float32 may cost a cosine of 1
FOUND = 0.995
PLANTED = 2000
OF_EACH = 64  # rows of a list that its centre is found from
ROUNDS = 10
GOES = 64
ASKED = 1 << 25  # (row, list) in memory at once: 0.5 GB

Show = Callable[[int], None]
Pairs = Iterator[tuple[np.ndarray, np.ndarray]]


class Array(Protocol):
    """What is read as an array [n, D] is: by a slice or by an array of numbers."""

    def __len__(self) -> int: ...
    def __getitem__(self, which: Any, /) -> np.ndarray: ...


def device() -> str:
    """Where rows are compared."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def unit(rows: np.ndarray) -> Tensor:
    """Rows of length 1 in float32: rounding to float16 changed it by up to 0.0005."""
    return torch.nn.functional.normalize(torch.from_numpy(np.asarray(rows, np.float32)).to(device()), dim=1)


def spherical(rows: Array, count: int, rounds: int, seed: int = 0) -> Tensor:
    """Unit centres [up to count, D] of a sample of rows by k-means over cosines."""
    import faiss

    count = min(count, len(rows))
    dice = np.random.default_rng(seed)
    chosen = np.sort(dice.choice(len(rows), min(len(rows), max(OF_EACH * count, 50_000)), replace=False))
    sample = np.empty((len(chosen), rows[:1].shape[1]), np.float32)
    for start in range(0, len(chosen), TILE):
        sample[start : start + TILE] = unit(rows[chosen[start : start + TILE]]).cpu()
    found = sample[_apart(torch.from_numpy(sample).to(device()), count, dice)]
    few = {"min_points_per_centroid": 1, "max_points_per_centroid": len(sample)}
    with Progress("centres", rounds, hush_s=5) as bar:
        for done in range(rounds):  # one round a call, so that it can be seen
            means = faiss.Kmeans(sample.shape[1], count, niter=1, spherical=True, seed=seed, gpu=False, **few)
            means.train(sample, init_centroids=found)
            found = np.asarray(means.centroids)
            bar.update(done + 1)
    return unit(found)


def _apart(sample: Tensor, count: int, dice: np.random.Generator) -> np.ndarray:
    """Numbers [count] of rows to start from: one is the likelier taken, the farther it is from those before it
    (k-means++, Arthur and Vassilvitskii 2007), in up to GOES goes of several."""
    far, chosen = torch.ones(len(sample), device=sample.device), np.empty(0, np.int64)
    while len(chosen) < count:
        weight = far.cpu().numpy().astype(np.float64) + 1e-9  # so that there are always enough to take from
        some = min(max(count // GOES, 1), count - len(chosen))
        taken = dice.choice(len(sample), some, replace=False, p=weight / weight.sum())
        chosen = np.concatenate([chosen, taken])
        for start in range(0, len(sample), TILE):
            here = 1 - (sample[start : start + TILE] @ sample[taken].T).amax(1)
            far[start : start + TILE] = torch.minimum(far[start : start + TILE], here).clamp(min=0)
        far[taken] = 0
    return chosen


def nearest_centres(
    rows: Array, numbers: range, centres: Tensor, count: int, show: Show = lambda done: None
) -> tuple[np.ndarray, np.ndarray]:
    """(cosines float32, centres int32) [n, count] of the centres nearest to each of the rows `numbers`, best first."""
    scores, found = np.empty((len(numbers), count), np.float32), np.empty((len(numbers), count), np.int32)
    for start in range(0, len(numbers), TILE):
        some = numbers[start : start + TILE]
        best = (unit(rows[some.start : some.stop]) @ centres.T).topk(count, dim=1)
        scores[start : start + TILE], found[start : start + TILE] = best.values.cpu(), best.indices.cpu()
        show(some.stop)
    return scores, found


class Lists:
    """Rows sorted into lists, and the pairs of a cosine of at least `threshold` with others: with `both` either row of
    a pair may find the other. `how` says what is compared, and what share of planted pairs that meets."""

    def __init__(self, rows: Array, threshold: float, both: bool) -> None:
        self.rows, self.threshold = rows, threshold
        self.centres = spherical(rows, max(1, int(4 * len(rows) ** 0.5)), ROUNDS)
        with Progress("lists", len(rows), hush_s=5) as bar:
            lists = nearest_centres(rows, range(len(rows)), self.centres, 1, bar.update)[1][:, 0]
        self._members = np.argsort(lists, kind="stable")
        self._ends = np.searchsorted(lists[self._members], np.arange(len(self.centres) + 1))
        self.looked, met = self._needed(both)
        self.how = f"{self.looked} of {len(self.centres)} lists, which meet {met:.4f} of pairs planted at the threshold"

    def _needed(self, both: bool) -> tuple[int, float]:
        """(lists to look at for each row, the share of planted pairs that are then met)."""
        dice = np.random.default_rng(1)
        one, two = dice.integers(len(self.rows), size=(2, min(PLANTED, len(self.rows))))
        here = unit(self.rows[one])
        aside = unit(self.rows[two])
        aside = torch.nn.functional.normalize(aside - (aside * here).sum(1, keepdim=True) * here, dim=1)
        moved = self.threshold * here + (1 - self.threshold**2) ** 0.5 * aside
        before, after = here @ self.centres.T, moved @ self.centres.T
        steps = _rank(after, before.argmax(1))
        if both:
            steps = torch.minimum(steps, _rank(before, after.argmax(1)))
        ordered = steps.sort().values
        looked = int(ordered[min(int(FOUND * len(ordered)), len(ordered) - 1)]) + 1
        return looked, float((steps < looked).float().mean())

    def pairs(self, rows: Array, show: Show = lambda done: None, own: bool = False) -> Pairs:
        """(numbers of `rows`, numbers of the rows in the lists) of the pairs that are near enough; with `own` these are
        the same rows, and none is a pair with itself."""
        slab = max(ASKED // self.looked, 1)
        for start in range(0, len(rows), slab):
            numbers = range(start, min(start + slab, len(rows)))
            asked = nearest_centres(rows, numbers, self.centres, self.looked)[1].ravel()
            order = np.argsort(asked, kind="stable")
            ends = np.searchsorted(asked[order], np.arange(len(self.centres) + 1))
            for i in range(len(self.centres)):
                asking = start + order[ends[i] : ends[i + 1]] // self.looked
                for one, two in self._compared(rows, asking, self._members[self._ends[i] : self._ends[i + 1]]):
                    apart = one != two if own else slice(None)
                    yield one[apart], two[apart]
                show(start + len(numbers) * (i + 1) // len(self.centres))

    def _compared(self, rows: Array, asking: np.ndarray, members: np.ndarray) -> Pairs:
        for first in range(0, len(asking), TILE):
            block = unit(rows[asking[first : first + TILE]])
            for other in range(0, len(members), TILE):
                near = block @ unit(self.rows[members[other : other + TILE]]).T >= self.threshold - SLACK
                pairs = near.nonzero().cpu().numpy()
                if len(pairs):
                    yield asking[first + pairs[:, 0]], members[other + pairs[:, 1]]


def _rank(scores: Tensor, of: Tensor) -> Tensor:
    """How many centres are nearer than these, [n], by scores [n, centres]."""
    return (scores > scores.gather(1, of[:, None])).sum(1)
