"""The nearest rows, exactly: the truth that an index is measured against."""

from collections.abc import Iterable

import numpy as np
import torch

PRODUCTS = 1 << 22  # at once: 16 MB, which is compared while it is still in the cache
FIRST, GROWTH = 256, 16
"""All of the first rows are candidates; each later piece is at most so many times what came before it, so that few of
its rows are better than the k-th best until then."""


def nearest(queries: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores float32, numbers int64) [Q, k] of the rows nearest to queries [Q, D] by inner product, best first; of
    equals the lower number. `blocks` are (number of the first row, rows [n, D]) in ascending order; -inf and -1 where
    there are fewer rows than k. A row of zeros stands for one that is not there, and is not found.
    """
    asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
    scores = np.full((len(asked), k), -np.inf, np.float32)
    numbers = np.full((len(asked), k), -1, np.int64)
    seen = 0
    for first, block in blocks:
        rows = torch.from_numpy(np.ascontiguousarray(block, np.float32))
        start = 0
        while start < len(rows):
            size = min(max(FIRST, GROWTH * seen), max(PRODUCTS // max(len(asked), 1), 1))
            piece = rows[start : start + size]
            products = (asked @ piece.T).numpy()
            products[:, _nothing(piece.numpy())] = -np.inf
            # a later row with an equal score has the higher number, and is no better
            which, at = np.divmod(np.flatnonzero(products > scores[:, -1:]), len(piece))
            if len(which):
                scores, numbers = _merged(scores, numbers, which, products[which, at], at + first + start)
            start, seen = start + len(piece), seen + len(piece)
    return scores, numbers


def best(scores: np.ndarray, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's found [Q, any], best first; of equals the lower number."""
    order = np.lexsort((numbers, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def recall(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The share of each query's true nearest [Q, k] that was `found` [Q, any], float64 [Q]; -1 is nothing."""
    hits = [np.isin(true[true >= 0], row).sum() for true, row in zip(truth, found, strict=True)]
    return np.array(hits, float) / np.maximum((truth >= 0).sum(1), 1)


def _nothing(rows: np.ndarray) -> np.ndarray:
    """The positions of rows of zeros."""
    suspects = np.flatnonzero(rows[:, 0] == 0)
    return suspects[~rows[suspects].any(1)]


def _merged(
    scores: np.ndarray, numbers: np.ndarray, which: np.ndarray, more: np.ndarray, of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best [Q, k] of those until now and of more: the score more[i] of row of[i] for the query which[i]."""
    count, k = scores.shape
    query = np.concatenate([np.repeat(np.arange(count), k), which])
    score, number = np.concatenate([scores.ravel(), more]), np.concatenate([numbers.ravel(), of])
    order = np.lexsort((number, -score, query))
    place = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    kept = order[place < k]
    return score[kept].reshape(count, k), number[kept].reshape(count, k)
