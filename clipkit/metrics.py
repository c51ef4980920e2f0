"""Scores as pure functions of tensors, by CLIP_benchmark's definitions; each lies in 0..1, more is better."""

import torch
from torch import Tensor


def top_k_hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """bool [N]: is the label [N] among the k highest of scores [N, C]; of equal scores the lower class comes first."""
    own = scores.gather(1, labels[:, None])
    worse = (scores < own).sum(1)  # and not the better ones: among NaNs nothing is better, and all would be hits
    later = ((scores == own) & (torch.arange(scores.shape[1]) > labels[:, None])).sum(1)
    return scores.shape[1] - 1 - worse - later < k


def mean_per_class(hits: Tensor, labels: Tensor) -> float:
    """The mean over the classes that occur in labels [N] of the share of hits [N] within each."""
    totals = torch.bincount(labels)
    right = torch.bincount(labels, weights=hits.double(), minlength=len(totals))
    there = totals > 0
    return float((right[there] / totals[there]).mean())


def found_at(found: Tensor, owner: Tensor, own: Tensor, k: int) -> Tensor:
    """bool [Q]: is one of the first k rows that query q found [Q, >= k] owned by own[q]; owner [M] of the rows.

    A row of -1 (an index with fewer entries than asked for) counts as nothing found.
    """
    owners = torch.where(found[:, :k] >= 0, owner[found[:, :k].clamp(min=0)], -1)
    return (owners == own[:, None]).any(1)
