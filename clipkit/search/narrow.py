"""Fewer of what was found: one of those that look the same, and others that differ from each other."""

from collections.abc import Callable

import numpy as np

CHUNK = 512  # candidates that are compared with each other at once
SLACK = 1e-5  # that rounding costs a cosine of 1

Rows = Callable[[np.ndarray], np.ndarray]
"""The unit rows [n, D] with these numbers."""


def unlike(numbers: np.ndarray, rows: Rows, most: float, k: int) -> np.ndarray:
    """Places, ascending, of the first `k` of some numbers, best first, whose cosine with no better one that is kept
    reaches `most`."""
    most -= SLACK
    kept: list[int] = []
    apart: np.ndarray | None = None  # the rows that are kept
    for start in range(0, len(numbers), CHUNK):
        block = rows(numbers[start : start + CHUNK])
        free = np.ones(len(block), bool) if apart is None else ((block @ apart.T) < most).all(1)
        among = block @ block.T
        here: list[int] = []
        for i in np.flatnonzero(free).tolist():
            if len(kept) + len(here) < k and (among[i, here] < most).all():
                here.append(i)
        kept += [start + i for i in here]
        apart = block[here] if apart is None else np.concatenate([apart, block[here]])
        if len(kept) >= k:
            break
    return np.array(kept, np.int64)


def diverse(scores: np.ndarray, rows: np.ndarray, share: float, k: int) -> np.ndarray:
    """Places of `k` candidates, the next always the one that is best by (1 - share) * its score - share * its highest
    cosine with one before it.

    Scores [n] and cosines of `rows` [n, D] are both scaled to 0..1 over the candidates: words' scores for pictures lie
    far closer together than pictures' cosines, and the share would mean something else for each query.
    Source: Carbonell and Goldstein 1998, maximal marginal relevance.
    """
    cosines = rows @ rows.T
    worth, alike = _scaled(scores.astype(np.float64)), _scaled(cosines.astype(np.float64))
    chosen: list[int] = []
    near = np.zeros(len(scores))
    free = np.ones(len(scores), bool)
    for _ in range(min(k, len(scores))):
        value = np.where(free, (1 - share) * worth - share * near, -np.inf)
        best = int(value.argmax())
        chosen.append(best)
        free[best] = False
        near = np.maximum(near, alike[best])
    return np.array(chosen, np.int64)


def _scaled(values: np.ndarray) -> np.ndarray:
    if not values.size:
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
