"""The order: every sample once an epoch, from any position, by arithmetic that plain Python repeats."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data.order import ROUNDS, Order, mix, permute

WORD = (1 << 64) - 1


def plain_mix(*words: int) -> int:
    """splitmix64, chained, in Python's integers."""
    state = 0
    for word in words:
        state = (state + (word & WORD) + 0x9E3779B97F4A7C15) & WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
        state ^= state >> 31
    return state


def plain_permute(i: int, n: int, *key: int) -> int:
    half = (max((n - 1).bit_length(), 1) + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for r in range(ROUNDS):
            left, right = right, left ^ (plain_mix(plain_mix(*key, r), right) & mask)
        i = left << half | right
        if i < n:
            return i


def plain_locate(order: Order, position: int) -> tuple[int, int]:
    """The order as its module describes it, with lists instead of arithmetic: shards permuted, then windows."""
    counts, total = order.counts.tolist(), len(order)
    epoch, place = divmod(position, total)
    shards = [plain_permute(i, len(counts), order.seed, epoch, 2) for i in range(len(counts))]
    line = [(shard, row) for shard in shards for row in range(counts[shard])]
    windows = max(1, round(total / order.window))
    edges = [-(-i * total // windows) for i in range(windows + 1)]
    number = next(i for i in range(windows) if edges[i] <= place < edges[i + 1])
    start, size = edges[number], edges[number + 1] - edges[number]
    return line[start + plain_permute(place - start, size, order.seed, epoch, 1, number)]


def located(order: Order, positions: np.ndarray) -> list[tuple[int, int]]:
    shards, rows = order.locate(positions)
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


ORDERS = st.builds(
    Order,
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any).map(lambda n: np.array(n, np.int64)),
    seed=st.integers(0, 2**62),
    window=st.integers(1, 300),
)


@given(words=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
def test_mix_equals_plain_integers(words: list[int]) -> None:
    assert int(mix(*words)) == plain_mix(*words)
    assert mix(np.array(words)).tolist() == [plain_mix(word) for word in words]


@given(n=st.integers(1, 10**12), seed=st.integers(0, 2**62), data=st.data())
def test_permute_equals_plain_integers(n: int, seed: int, data: st.DataObject) -> None:
    i = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
    wanted = [plain_permute(x, n, seed, 7) for x in i]
    assert permute(np.array(i, np.int64), np.array(n), seed, 7).tolist() == wanted


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 4097])
def test_permute_is_a_permutation(n: int) -> None:
    for key in range(3):
        assert np.array_equal(np.sort(permute(np.arange(n), np.array(n), key)), np.arange(n))


@given(order=ORDERS, epoch=st.integers(0, 5))
def test_locate_equals_its_description(order: Order, epoch: int) -> None:
    positions = np.arange(epoch * len(order), (epoch + 1) * len(order))
    assert located(order, positions) == [plain_locate(order, int(p)) for p in positions[:60]] + located(
        order, positions[60:]
    )


@given(order=ORDERS, epochs=st.integers(1, 4), first=st.integers(0, 10**6))
def test_every_sample_comes_exactly_once_an_epoch(order: Order, epochs: int, first: int) -> None:
    total = len(order)
    found = located(order, np.arange(first * total, (first + epochs) * total))
    every = [(shard, row) for shard, count in enumerate(order.counts) for row in range(count)]
    for epoch in range(epochs):
        assert sorted(found[epoch * total : (epoch + 1) * total]) == every


@given(order=ORDERS, data=st.data())
def test_positions_are_located_alike_in_any_order_and_company(order: Order, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, 5 * len(order)), max_size=50))
    together = located(order, np.array(positions, np.int64))
    assert together == [located(order, np.array([p]))[0] for p in positions]


@given(order=ORDERS)
@settings(max_examples=30)
def test_no_sample_leaves_its_window(order: Order) -> None:
    total, windows = len(order), max(1, round(len(order) / order.window))
    shards = [plain_permute(i, len(order.counts), order.seed, 0, 2) for i in range(len(order.counts))]
    line = [(shard, row) for shard in shards for row in range(order.counts[shard])]
    moved = [abs(line.index(one) - place) for place, one in enumerate(located(order, np.arange(total)))]
    assert max(moved) < -(-total // windows)


def test_a_window_of_one_sample_shuffles_whole_shards_alone() -> None:
    shard, row = Order(np.array([3, 0, 4, 2]), seed=1, window=1).locate(np.arange(9))
    runs = [
        (key, [r for _, r in group]) for key, group in itertools.groupby(zip(shard, row, strict=True), lambda x: x[0])
    ]
    assert sorted((int(key), [int(r) for r in rows]) for key, rows in runs) == [
        (0, [0, 1, 2]),
        (2, [0, 1, 2, 3]),
        (3, [0, 1]),
    ]


def test_seeds_and_epochs_give_different_orders() -> None:
    counts = np.full(5, 20)
    orders = [
        tuple(located(Order(counts, seed, 1000), np.arange(e * 100, e * 100 + 100))) for seed in (0, 1) for e in (0, 1)
    ]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("n", [2, 3, 4, 5, 16, 17])
def test_every_element_comes_to_every_place_equally_often(n: int) -> None:
    draws = 300 * n
    seeds = np.repeat(np.arange(draws), n)
    found = permute(np.tile(np.arange(n), draws), np.array(n), seeds).reshape(draws, n)
    counts = np.stack([np.bincount(column, minlength=n) for column in found.T])
    chi2, freedom = float(((counts - 300) ** 2 / 300).sum()), (n - 1) ** 2
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom), f"chi2 {chi2} for {freedom} degrees of freedom"


def test_every_permutation_of_five_elements_comes_up() -> None:
    draws = 100 * 120  # their shares differ by about a tenth: a network over four bits cannot do better
    found = permute(np.tile(np.arange(5), draws), np.array(5), np.repeat(np.arange(draws), 5)).reshape(draws, 5)
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 120 and counts.min() > 50 and counts.max() < 170


def test_a_billion_samples_need_no_memory_and_do_not_overflow() -> None:
    order = Order(np.full(128_000, 9_000), seed=2**63 - 1, window=1 << 18)
    shard, row = order.locate(np.array([0, len(order) - 1, 10**12, 10**15]))
    assert ((shard >= 0) & (shard < 128_000) & (row >= 0) & (row < 9_000)).all()


def test_no_positions_give_no_samples() -> None:
    shard, row = Order(np.array([3]), 0, 10).locate(np.array([], np.int64))
    assert shard.shape == row.shape == (0,)
