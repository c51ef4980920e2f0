"""The order: every sample once an epoch, from any position, by arithmetic that plain Python repeats."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data.order import AT_ONCE, ROUNDS, Order, mix, permute

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


def plain_locate(order: Order, asked_lanes: int, position: int) -> tuple[int, int]:
    """The order as its module describes it, with lists instead of arithmetic: shards permuted, runs, then windows."""
    counts, total = order.counts.tolist(), sum(order.counts.tolist())
    epoch, place = divmod(position, total)
    shards = [plain_permute(i, len(counts), order.seed, epoch, 2) for i in range(len(counts))]
    line = [(shard, row) for shard in shards for row in range(counts[shard])]
    lanes = min(asked_lanes, total)
    runs = [line[lane * (total // lanes) : (lane + 1) * (total // lanes)] for lane in range(lanes)]
    if place >= lanes * len(runs[0]):
        return line[place]
    lane, at, length = place % lanes, place // lanes, len(runs[0])
    windows = max(1, round(length / order.window)) if order.window else 1
    edges = [-(-i * length // windows) for i in range(windows + 1)]
    number = next(i for i in range(windows) if edges[i] <= at < edges[i + 1])
    start, size = edges[number], edges[number + 1] - edges[number]
    return runs[lane][start + plain_permute(at - start, size, order.seed, epoch, 1, number, lane)]


def located(order: Order, positions: np.ndarray) -> list[tuple[int, int]]:
    shards, rows = order.locate(positions)
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any).map(lambda n: np.array(n, np.int64))
LANES = st.one_of(st.integers(1, 9), st.integers(1, 600))  # 600 are more than there are samples
WINDOWS = st.one_of(st.none(), st.integers(1, 300))
ORDERS = st.builds(Order, counts=COUNTS, seed=st.integers(0, 2**62), window=WINDOWS, lanes=LANES)


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


@pytest.mark.parametrize("n", [1, 100, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE + 5])
def test_many_elements_at_once_go_where_each_goes_alone(n: int) -> None:
    sizes, keys = np.arange(n) % 1000 + 1, np.arange(n) % 77
    i = (np.arange(n) * 7919) % sizes
    found = permute(i, sizes, 5, keys)
    same = permute(np.arange(n), np.array(n), 5)
    assert np.array_equal(np.sort(same), np.arange(n))
    for at in {0, n // 3, n // 2, n - 1}:
        assert found[at] == plain_permute(int(i[at]), int(sizes[at]), 5, int(keys[at]))
        assert same[at] == plain_permute(at, n, 5)


@given(counts=COUNTS, seed=st.integers(0, 2**62), window=WINDOWS, lanes=LANES, epoch=st.integers(0, 5), data=st.data())
def test_locate_equals_its_description(
    counts: np.ndarray, seed: int, window: int | None, lanes: int, epoch: int, data: st.DataObject
) -> None:
    order, total = Order(counts, seed, window, lanes), int(counts.sum())
    places = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=20)) + [0, total - 1]
    positions = [epoch * total + place for place in places]
    assert located(order, np.array(positions)) == [plain_locate(order, lanes, p) for p in positions]


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


def line_of(order: Order, epoch: int) -> list[tuple[int, int]]:
    """All samples in the shard order of an epoch."""
    shards = [plain_permute(i, len(order.counts), order.seed, epoch, 2) for i in range(len(order.counts))]
    return [(shard, row) for shard in shards for row in range(order.counts[shard])]


@given(order=ORDERS)
@settings(max_examples=50)
def test_no_sample_leaves_its_lane_or_its_window(order: Order) -> None:
    total, line = len(order), line_of(order, 0)
    found, lane = located(order, np.arange(total)), order.lane(np.arange(total)).tolist()
    for place, one in enumerate(found):
        if place < order.run * order.lanes:
            assert lane[place] == place % order.lanes == line.index(one) // order.run
            moved = abs(line.index(one) - lane[place] * order.run - place // order.lanes)
            assert moved < -(-order.run // order.windows)
        else:
            assert one == line[place] and lane[place] == order.lanes - 1, "what is left over comes last, unshuffled"


@given(order=ORDERS, epoch=st.integers(0, 3))
@settings(max_examples=50)
def test_lanes_take_turns(order: Order, epoch: int) -> None:
    lane = order.lane(np.arange(epoch * len(order), (epoch + 1) * len(order)))
    counts = np.bincount(lane, minlength=order.lanes)
    assert counts[:-1].tolist() == [order.run] * (order.lanes - 1)
    assert counts[-1] == order.run + len(order) % order.lanes
    for start in range(0, order.run * order.lanes, order.lanes):
        assert lane[start : start + order.lanes].tolist() == list(range(order.lanes))


# Which shards are read when


def listed(order: Order, first: int, lanes: range, end: int) -> list[tuple[int, int]]:
    """What `needs` lists before position `end`."""
    return list(itertools.takewhile(lambda one: one[0] < end, order.needs(first, lanes)))


def uses(order: Order, epoch: int) -> dict[tuple[int, int], list[int]]:
    """{(lane, shard): positions} at which it is read in an epoch."""
    positions = np.arange(epoch * len(order), (epoch + 1) * len(order))
    found: dict[tuple[int, int], list[int]] = {}
    for position, lane, (shard, _) in zip(
        positions.tolist(), order.lane(positions).tolist(), located(order, positions), strict=True
    ):
        found.setdefault((lane, shard), []).append(position)
    return found


@given(order=ORDERS, data=st.data())
@settings(max_examples=60)
def test_every_shard_of_a_lane_is_listed_once_an_epoch_before_its_first_sample(
    order: Order, data: st.DataObject
) -> None:
    total, lane = len(order), data.draw(st.integers(0, order.lanes - 1))
    needs = listed(order, 0, range(lane, lane + 1), 3 * total)
    assert [position for position, _ in needs] == sorted(position for position, _ in needs)
    for epoch in range(3):
        here = [(position, shard) for position, shard in needs if position // total == epoch]
        used = {shard: where[0] for (which, shard), where in uses(order, epoch).items() if which == lane}
        assert sorted(shard for _, shard in here) == sorted(used), "each once, and no other"
        assert all(position <= used[shard] for position, shard in here)


@given(order=ORDERS, data=st.data())
@settings(max_examples=60)
def test_from_a_position_on_everything_that_is_still_read_is_listed(order: Order, data: st.DataObject) -> None:
    total, lane = len(order), data.draw(st.integers(0, order.lanes - 1))
    first = data.draw(st.integers(0, 2 * total - 1))
    epoch = first // total
    needs = listed(order, first, range(lane, lane + 1), (epoch + 1) * total)
    used = {shard: where for (which, shard), where in uses(order, epoch).items() if which == lane}
    left = {shard: min(p for p in where if p >= first) for shard, where in used.items() if where[-1] >= first}
    when = {shard: position for position, shard in needs}
    assert len(when) == len(needs) and left.keys() <= when.keys() <= used.keys()
    assert all(first <= when[shard] <= position for shard, position in left.items())
    window = -(-order.run // order.windows) * order.lanes
    for shard in when.keys() - left.keys():
        assert used[shard][-1] >= first - window, "what ended before this window is not fetched again"


@given(order=ORDERS, data=st.data())
@settings(max_examples=60)
def test_several_lanes_are_listed_as_each_alone(order: Order, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, order.lanes - 1))
    lanes = range(low, data.draw(st.integers(low + 1, min(order.lanes, low + 6))))
    first = data.draw(st.integers(0, 3 * len(order)))
    end = (first // len(order) + 2) * len(order)
    alone = [one for lane in lanes for one in listed(order, first, range(lane, lane + 1), end)]
    assert listed(order, first, lanes, end) == sorted(alone)


def test_a_small_set_done_by_hand_is_read_lane_by_lane() -> None:
    order = Order(np.array([2, 2, 3]), seed=1, window=1, lanes=2)
    line = line_of(order, 0)  # 7 samples: two runs of 3, and one left over
    assert located(order, np.arange(7)) == [line[i] for i in (0, 3, 1, 4, 2, 5, 6)]
    assert order.lane(np.arange(7)).tolist() == [0, 1, 0, 1, 0, 1, 1]


# Shuffling


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


@pytest.mark.parametrize("lanes", [1, 64])
def test_a_billion_samples_need_no_memory_and_do_not_overflow(lanes: int) -> None:
    order = Order(np.full(128_000, 9_000), 2**63 - 1, 1 << 18, lanes)
    shard, row = order.locate(np.array([0, len(order) - 1, 10**12, 10**15]))
    assert ((shard >= 0) & (shard < 128_000) & (row >= 0) & (row < 9_000)).all()


def test_no_positions_give_no_samples() -> None:
    shard, row = Order(np.array([3]), 0, 10).locate(np.array([], np.int64))
    assert shard.shape == row.shape == (0,)
