"""Rows that point the same way: groups of them, and those that are near to a row of another set.

Up to EXACT rows all pairs are compared, tile by tile as matrix products: half of them, since the cosine is symmetric,
and in the same memory however many are near, where a search for all within a range keeps its whole answer. Beyond
that FAISS looks at the PROBED nearest of many lists.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

EXACT = 200_000
EXACT_ON_GPU = 2_000_000
TILE = 2048
PROBED = 32
NEIGHBOURS = 64
SLACK = 1e-6  # that rounding to float32 may cost a cosine of 1

Show = Callable[[int], None]


def groups(rows: np.ndarray, threshold: float, show: Show = lambda done: None) -> tuple[np.ndarray, str]:
    """(the first row of the group of each row, int64 [n]; how they were found). Two rows [n, D] with a cosine of at
    least `threshold` are in one group, and so are those that a chain of such pairs connects."""
    first = np.arange(len(rows))
    if len(rows) <= _exact():
        for one, two in _all_pairs(rows, threshold, show):
            connect(first, one, two)
        how = "all pairs"
    else:
        index = _lists(rows, EXACT)
        for one, two in _listed_pairs(index, rows, rows, threshold, NEIGHBOURS, show):
            connect(first, one, two)
        how = f"FAISS IVF: {index.nprobe} of {index.nlist} lists, {NEIGHBOURS} neighbours each"
    return _roots(first, first), how


def near_to(others: np.ndarray, threshold: float) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """(a function of rows [n, D] that says which have a cosine of at least `threshold` with one of `others` [m, D],
    bool [n]; how it finds them)."""
    if len(others) > _exact():
        index = _lists(others, EXACT)

        def listed(rows: np.ndarray) -> np.ndarray:
            near = np.zeros(len(rows), bool)
            for one, _ in _listed_pairs(index, rows, others, threshold, 4, lambda done: None, own=False):
                near[one] = True
            return near

        return listed, f"FAISS IVF: {index.nprobe} of {index.nlist} lists"
    device = _device()

    def compared(rows: np.ndarray) -> np.ndarray:
        best = torch.full((len(rows),), -2.0, device=device)
        for start in range(0, len(rows), TILE):
            block = _unit(rows[start : start + TILE], device)
            for other in range(0, len(others), TILE):
                here = (block @ _unit(others[other : other + TILE], device).T).amax(1)
                best[start : start + TILE] = torch.maximum(best[start : start + TILE], here)
        return (best >= threshold - SLACK).cpu().numpy()

    return compared, "all pairs"


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


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _unit(rows: np.ndarray, device: str) -> Tensor:
    """Rows of length 1 in float32: rounding to float16 changed it by up to 0.0005."""
    return torch.nn.functional.normalize(torch.from_numpy(np.asarray(rows, np.float32)).to(device), dim=1)


def _all_pairs(rows: np.ndarray, threshold: float, show: Show) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    device = _device()
    for start in range(0, len(rows), TILE):
        block = _unit(rows[start : start + TILE], device)
        for other in range(start, len(rows), TILE):
            tile = block if other == start else _unit(rows[other : other + TILE], device)
            hits = block @ tile.T >= threshold - SLACK
            pairs = (hits.triu(1) if other == start else hits).nonzero().cpu().numpy()
            if len(pairs):
                yield pairs[:, 0] + start, pairs[:, 1] + other
        show(min(start + TILE, len(rows)))


def _lists(rows: np.ndarray, most: int) -> Any:
    """A FAISS index of rows in float16, in lists around means of up to `most` of them."""
    import faiss

    count = max(1, min(int(4 * len(rows) ** 0.5), len(rows) // 39))
    quantizer = faiss.IndexFlatIP(rows.shape[1])
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, rows.shape[1], count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    sample = np.sort(np.random.default_rng(0).choice(len(rows), min(len(rows), max(most, 40 * count)), replace=False))
    index.train(_unit(rows[sample], "cpu").numpy())
    for start in range(0, len(rows), TILE):
        index.add(_unit(rows[start : start + TILE], "cpu").numpy())
    index.nprobe = min(PROBED, count)
    return index


def _listed_pairs(
    index: Any, rows: np.ndarray, others: np.ndarray, threshold: float, neighbours: int, show: Show, own: bool = True
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (row, one of its nearest others) whose cosine, computed once more in float32, is high enough."""
    for start in range(0, len(rows), TILE):
        block = _unit(rows[start : start + TILE], "cpu")
        scores, found = index.search(block.numpy(), neighbours)
        one, place = np.nonzero((scores >= threshold - 2e-3) & (found >= 0))
        two = found[one, place]
        if own:
            one, two = one[two != one + start], two[two != one + start]
        for first in range(0, len(one), TILE):
            a, b = one[first : first + TILE], two[first : first + TILE]
            good = ((block[torch.from_numpy(a)] * _unit(others[b], "cpu")).sum(1) >= threshold - SLACK).numpy()
            yield a[good] + start, b[good]
        show(min(start + TILE, len(rows)))
