"""Rows that point the same way: groups of them, and those that are near to a row of another set.

Up to EXACT rows all pairs are compared, tile by tile as matrix products: half of them, since the cosine is symmetric,
and in the same memory however many are near. Beyond that a row is compared with those of the `Lists` near to it.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from clipkit.vectors.folder import Vectors
from clipkit.vectors.lists import SLACK, TILE, Array, Lists, Show, device, unit

EXACT = 200_000
EXACT_ON_GPU = 2_000_000


class Of:
    """The rows of one kind of a vectors folder, or those of them with these `numbers`, read as an array is: by a slice
    or by places."""

    def __init__(self, source: Vectors, kind: str, numbers: np.ndarray | None = None) -> None:
        self.source, self.kind = source, kind
        self.numbers = np.arange(len(source)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        return self.source.take(self.kind, self.numbers[which])


def groups(rows: Array, threshold: float, show: Show = lambda done: None) -> tuple[np.ndarray, str]:
    """(the first row of the group of each row, int64 [n]; how they were found). Two rows [n, D] with a cosine of at
    least `threshold` are in one group, and so are those that a chain of such pairs connects."""
    first = np.arange(len(rows))
    if len(rows) <= _exact():
        pairs, how = _all_pairs(rows, threshold, show), "all pairs"
    else:
        lists = Lists(rows, threshold, both=True)
        pairs, how = lists.pairs(rows, show, own=True), lists.how
    for one, two in pairs:
        connect(first, one, two)
    return _roots(first, first), how


def near_to(others: Array, threshold: float) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """(a function of rows [n, D] that says which have a cosine of at least `threshold` with one of `others` [m, D],
    bool [n]; how it finds them)."""
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
