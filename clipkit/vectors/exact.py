"""The nearest rows, exactly: the truth that an index is measured against."""

from collections.abc import Iterable

import numpy as np
import torch


def nearest(queries: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores float32, numbers int64) [Q, k] of the rows nearest to queries [Q, D] by inner product, best first; of
    equals the lower number. `blocks` are (number of the first row, rows [n, D]); -1 where there are fewer rows than k.
    """
    asked = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
    scores = torch.full((len(asked), k), -torch.inf)
    numbers = torch.full((len(asked), k), -1, dtype=torch.int64)
    for first, rows in blocks:
        products = asked @ torch.from_numpy(np.ascontiguousarray(rows, np.float32)).T
        some, at = products.topk(min(k, len(rows)), dim=1)
        # what came before stands first: the sort is stable, so that of equals the lower number wins
        scores, order = torch.cat([scores, some], 1).sort(dim=1, descending=True, stable=True)
        numbers = torch.cat([numbers, at + first], 1).gather(1, order)[:, :k]
        scores = scores[:, :k]
    return scores.numpy(), numbers.numpy()


def recall(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The share of each query's true nearest [Q, k] that was `found` [Q, any], float64 [Q]; -1 is nothing."""
    hits = (truth[:, :, None] == found[:, None, :]).any(2) & (truth >= 0)
    return hits.sum(1) / np.maximum((truth >= 0).sum(1), 1)
