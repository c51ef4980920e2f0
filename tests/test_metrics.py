"""Scores against plain numpy and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipkit.metrics import found_at, mean_per_class, top_k_hits


def plain_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> list[bool]:
    """A stable sort, best first, lower class first among equals."""
    return [bool(label in np.argsort(-row, kind="stable")[:k]) for row, label in zip(scores, labels, strict=True)]


@given(n=st.integers(0, 9), classes=st.integers(1, 7), k=st.integers(1, 8), seed=st.integers(0, 999))
def test_hits_equal_those_of_a_stable_sort(n: int, classes: int, k: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    scores, labels = dice.integers(0, 4, (n, classes)).astype(np.float32), dice.integers(0, classes, n)
    assert top_k_hits(torch.tensor(scores), torch.tensor(labels), k).tolist() == plain_hits(scores, labels, k)


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.1]]).expand(3, 3)
    assert top_k_hits(scores, torch.arange(3), 1).tolist() == [True, False, False]
    assert top_k_hits(scores, torch.arange(3), 2).tolist() == [True, True, False]


def test_a_score_that_is_not_a_number_is_no_hit() -> None:
    nan = float("nan")
    scores = torch.tensor([[nan, nan, nan], [nan, 1.0, 2.0], [nan, 1.0, 2.0]])
    assert top_k_hits(scores, torch.tensor([0, 0, 2]), 1).tolist() == [False, False, False]


@given(n=st.integers(1, 30), classes=st.integers(1, 6), seed=st.integers(0, 999))
def test_mean_per_class_is_the_mean_of_the_shares(n: int, classes: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    labels, hits = dice.integers(0, classes, n), dice.random(n) < 0.5
    wanted = np.mean([hits[labels == c].mean() for c in np.unique(labels)])
    assert mean_per_class(torch.tensor(hits), torch.tensor(labels)) == pytest.approx(float(wanted))


def test_mean_per_class_by_hand() -> None:
    # class 0: 1 of 3; class 2: 1 of 1; class 1 does not occur
    assert mean_per_class(torch.tensor([True, False, False, True]), torch.tensor([0, 0, 0, 2])) == pytest.approx(2 / 3)


def test_found_at_by_hand() -> None:
    owner = torch.tensor([10, 10, 11, 12])  # rows 0 and 1 belong to 10
    found = torch.tensor([[2, 1, 0], [2, 3, -1], [-1, -1, -1]])
    own = torch.tensor([10, 10, 12])
    assert found_at(found, owner, own, 1).tolist() == [False, False, False]
    assert found_at(found, owner, own, 2).tolist() == [True, False, False]
    assert found_at(found, owner, torch.tensor([11, 12, -5]), 3).tolist() == [True, True, False]


@given(q=st.integers(0, 6), m=st.integers(1, 8), k=st.integers(1, 8), seed=st.integers(0, 999))
def test_found_at_equals_a_loop(q: int, m: int, k: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    found, owner, own = dice.integers(-1, m, (q, max(k, 3))), dice.integers(0, 4, m), dice.integers(0, 4, q)
    wanted = [any(row >= 0 and owner[row] == mine for row in rows[:k]) for rows, mine in zip(found, own, strict=True)]
    assert found_at(*map(torch.tensor, (found, owner, own)), k).tolist() == wanted
