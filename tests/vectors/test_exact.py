"""The exact neighbours: those of sorting all products, whatever the blocks, and of equals the lower number."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.vectors import exact
from tests.vectors import laying


def plain(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All products, sorted stably; rows of zeros left out."""
    scores = np.where(rows.any(1), queries @ rows.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, 1)
    order[np.isneginf(found)] = -1
    short = k - order.shape[1]
    if short > 0:
        found, order = (
            np.pad(found, ((0, 0), (0, short)), constant_values=-np.inf),
            np.pad(order, ((0, 0), (0, short)), constant_values=-1),
        )
    return found, order


def blocks(rows: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
    return [(first, rows[first : first + size]) for first in range(0, len(rows), size)]


@given(
    n=st.integers(0, 60), asked=st.integers(1, 5), k=st.integers(1, 12), size=st.integers(1, 70),
    first=st.integers(1, 9), products=st.integers(1, 100), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_nearest_are_those_of_sorting_all_products(
    n: int, asked: int, k: int, size: int, first: int, products: int, seed: int
) -> None:
    dice = np.random.default_rng(seed)
    # whole numbers: products are exact, and many are equal
    rows = dice.integers(-1, 2, size=(n, 3)).astype(np.float32)
    queries = dice.integers(-2, 3, size=(asked, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "FIRST", first)
        patch.setattr(exact, "GROWTH", 2)
        patch.setattr(exact, "PRODUCTS", products)
        scores, numbers = exact.nearest(queries, blocks(rows, size), k)
    wanted = plain(queries, rows, k)
    assert scores.dtype == np.float32 and numbers.dtype == np.int64
    np.testing.assert_array_equal(numbers, wanted[1])
    np.testing.assert_array_equal(scores, wanted[0])


def test_rows_in_rising_order_are_all_better_than_those_before() -> None:
    rows = np.linspace(0.1, 1, 5000, dtype=np.float32)[:, None]
    _, numbers = exact.nearest(np.ones((2, 1), np.float32), blocks(rows, 1000), 3)
    assert numbers.tolist() == [[4999, 4998, 4997]] * 2


def test_the_best_of_several_found_are_in_order_and_of_equals_the_lower_number_first() -> None:
    scores = np.array([[0.5, 0.9, 0.5, -np.inf]], np.float32)
    best = exact.best(scores, np.array([[7, 3, 2, -1]]), 3)
    assert best[1].tolist() == [[3, 2, 7]] and best[0].tolist() == [[0.8999999761581421, 0.5, 0.5]]


def test_recall_is_the_share_of_the_true_that_was_found() -> None:
    found, true = np.array([[1, 2, -1], [4, 5, 6]]), np.array([[2, 1, -1], [6, 7, 8]])
    assert exact.recall(found, true).tolist() == [1.0, 1 / 3]
    assert exact.recall(found, np.full((2, 3), -1)).tolist() == [0.0, 0.0]


def test_recall_over_many_answers_takes_no_table_of_all_pairs() -> None:
    n = 20_000  # a table of 4 queries would take 1.6 GB
    tracemalloc.start()
    rows = np.arange(4 * n).reshape(4, n)
    assert exact.recall(rows[:, : n // 2], rows).tolist() == [0.5] * 4
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20_000_000


def test_float16_rows_are_compared_in_float32() -> None:
    rows = laying.rows(40).astype(np.float16)
    _, numbers = exact.nearest(rows[:4], [(0, rows)], 1)
    assert numbers[:, 0].tolist() == [0, 1, 2, 3]
