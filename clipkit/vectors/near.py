"""Rows that point the same way: groups of them, and those that are near to a row of another set.

Of rows that are equal one is compared. Up to EXACT of these all pairs are, tile by tile as matrix products: half of
them, since the cosine is symmetric, and in the same memory however many are near. Beyond that a row is compared with
those of the `Lists` near to it.
"""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from clipkit.vectors.folder import Vectors
from clipkit.vectors.lists import SLACK, TILE, Array, Lists, Show, device, unit

EXACT = 200_000
EXACT_ON_GPU = 2_000_000


class Of:
    """The rows of one kind of a vectors folder, read as an array is: by a slice or by numbers."""

    def __init__(self, source: Vectors, kind: str) -> None:
        self.source, self.kind = source, kind

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        numbers = np.arange(*which.indices(len(self))) if isinstance(which, slice) else which
        return self.source.take(self.kind, numbers)


class Some:
    """The rows of an array with these numbers, read as an array is."""

    def __init__(self, rows: Array, numbers: np.ndarray) -> None:
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        return self.rows[self.numbers[which]]


def groups(rows: Array, threshold: float, show: Show = lambda done: None) -> tuple[np.ndarray, str]:
    """(the first row of the group of each row, int64 [n]; how they were found). Two rows [n, D] with a cosine of at
    least `threshold` are in one group, and so are those that a chain of such pairs connects."""
    first, own = _equal(rows)
    some = rows if len(own) == len(rows) else Some(rows, own)

    def shown(done: int) -> None:
        show(len(rows) - len(own) + done)

    if len(some) <= _exact():
        pairs, how = _all_pairs(some, threshold, shown), "all pairs"
    else:
        lists = Lists(some, threshold, both=True)
        pairs, how = lists.pairs(some, shown, own=True), lists.how
    for one, two in pairs:
        connect(first, own[one], own[two])
    return _roots(first, first), how


def near_to(others: Array, threshold: float) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """(a function of rows [n, D] that says which have a cosine of at least `threshold` with one of `others` [m, D],
    bool [n]; how it finds them)."""
    if len(others) > _exact():
        others = Some(others, _equal(others)[1])
    if len(others) > _exact():
        lists = Lists(others, threshold, both=False)

        def listed(rows: np.ndarray) -> np.ndarray:
            near = np.zeros(len(rows), bool)
            for one, _ in lists.pairs(rows):
                near[one] = True
            return near

        return listed, lists.how

    def compared(rows: np.ndarray) -> np.ndarray:
        best = torch.full((len(rows),), -2.0, device=device())
        for start in range(0, len(rows), TILE):
            block = unit(rows[start : start + TILE])
            for other in range(0, len(others), TILE):
                here = (block @ unit(others[other : other + TILE]).T).amax(1)
                best[start : start + TILE] = torch.maximum(best[start : start + TILE], here)
        return (best >= threshold - SLACK).cpu().numpy()

    return compared, "all pairs"


def grouped(first: np.ndarray) -> np.ndarray:
    """Which rows are in a group of two or more, bool [n], of what `groups` gives."""
    return np.bincount(first, minlength=1)[first] > 1


def one_of_each(first: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """The rows, ascending, that stay when each group keeps the one of most `worth` [n]; of equals the first."""
    order = np.lexsort((np.arange(len(first)), -worth, first))
    heads = np.flatnonzero(np.diff(first[order], prepend=-1))
    return np.sort(order[heads])


def largest(first: np.ndarray, kept: np.ndarray, most: int) -> list[list[int]]:
    """The rows of the largest groups of two or more, up to `most` of them, in each the one that is kept first; groups
    as large in the order of their first rows."""
    sizes = np.bincount(first, minlength=1)
    found = [group for group in np.argsort(-sizes, kind="stable")[:most].tolist() if sizes[group] > 1]
    stays = np.zeros(len(first), bool)
    stays[kept] = True
    rows = [np.flatnonzero(first == group) for group in found]
    return [[*group[stays[group]].tolist(), *group[~stays[group]].tolist()] for group in rows]


def connect(first: np.ndarray, one: np.ndarray, two: np.ndarray) -> None:
    """Join the groups of one[i] and two[i] for all i. `first` [n] leads from each row, in one or more steps, to the
    first row of its group."""
    while True:
        a, b = _roots(first, one), _roots(first, two)
        first[one], first[two] = a, b  # shorter ways for the next time
        differ = a != b
        if not differ.any():
            return
        one, two = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
        np.minimum.at(first, two, one)


def _roots(first: np.ndarray, rows: np.ndarray) -> np.ndarray:
    while True:
        up = first[rows]
        if np.array_equal(up, rows):
            return up
        rows = up


def _equal(rows: Array) -> tuple[np.ndarray, np.ndarray]:
    """(the first row of the same bytes of each row, int64 [n]; which rows, ascending, are left to compare: one of each,
    and none of zeros, which are near to nothing). All pairs of 100,000 blank pictures are too many."""
    digests, there = np.empty(len(rows), "S16"), np.empty(len(rows), bool)
    for start in range(0, len(rows), TILE):
        block = np.ascontiguousarray(rows[start : start + TILE])
        digests[start : start + TILE] = [hashlib.blake2b(row, digest_size=16).digest() for row in block]
        there[start : start + TILE] = block.any(1)
    _, found, place = np.unique(digests, return_index=True, return_inverse=True)
    first = np.where(there, found[place], np.arange(len(rows)))
    return first, np.flatnonzero(there & (first == np.arange(len(rows))))


def _exact() -> int:
    return EXACT_ON_GPU if torch.cuda.is_available() else EXACT


def _all_pairs(rows: Array, threshold: float, show: Show) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(rows), TILE):
        block = unit(rows[start : start + TILE])
        for other in range(start, len(rows), TILE):
            tile = block if other == start else unit(rows[other : other + TILE])
            hits = block @ tile.T >= threshold - SLACK
            pairs = (hits.triu(1) if other == start else hits).nonzero().cpu().numpy()
            if len(pairs):
                yield pairs[:, 0] + start, pairs[:, 1] + other
        show(min(start + TILE, len(rows)))
