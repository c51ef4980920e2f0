"""Rows that point the same way are found: all pairs, chains of them, lists of rows, and one of each group stays."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.vectors import lists, near


def plain_groups(rows: np.ndarray, threshold: float) -> list[int]:
    """The first row of each row's group, by looking at all pairs again and again."""
    unit = rows.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    close, first = unit @ unit.T >= threshold, list(range(len(rows)))
    for _ in rows:
        for i in range(len(rows)):
            first[i] = min(first[j] for j in range(len(rows)) if close[i, j] or i == j)
    return first


def clustered(n: int, seed: int, width: int = 8, spread: float = 0.05) -> np.ndarray:
    """Rows around n / 3 directions."""
    dice = np.random.default_rng(seed)
    middle = dice.normal(size=(max(n // 3, 1), width))
    rows = middle[dice.integers(len(middle), size=n)] + spread * dice.normal(size=(n, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@settings(max_examples=40)
@given(n=st.integers(0, 40), seed=st.integers(0, 99), tile=st.sampled_from([1, 3, 7, 64]))
def test_groups_equal_looking_at_all_pairs_again_and_again(n: int, seed: int, tile: int) -> None:
    rows = clustered(n, seed)
    if n > 5:
        rows[::5] = 0  # nothing is there: near to nothing, and to no other nothing
    before, near.TILE = near.TILE, tile
    try:
        first, how = near.groups(rows, 0.99)
        flags = near.near_to(rows[: n // 2], 0.99)[0](rows[n // 2 :]) if n > 1 else np.zeros(0)
    finally:
        near.TILE = before
    assert first.tolist() == plain_groups(rows, 0.99) and how == "all pairs"
    unit = rows.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    assert n < 2 or np.array_equal(flags, (unit[n // 2 :] @ unit[: n // 2].T >= 0.99).any(1))


@given(
    n=st.integers(1, 60), edges=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=80),
    parts=st.integers(1, 5),
)  # fmt: skip
def test_connecting_in_parts_equals_following_every_edge(n: int, edges: list[tuple[int, int]], parts: int) -> None:
    edges = [(a % n, b % n) for a, b in edges]
    first = np.arange(n)
    for part in range(parts):
        one = np.array(edges[part::parts], np.int64).reshape(-1, 2)
        near.connect(first, one[:, 0], one[:, 1])
    wanted = list(range(n))
    for _ in range(n):
        for a, b in edges:
            wanted[a] = wanted[b] = min(wanted[a], wanted[b])
    assert near._roots(first, np.arange(n)).tolist() == wanted


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lists from 500 rows on, and small parts of everything."""
    for name in ("EXACT", "EXACT_ON_GPU"):
        monkeypatch.setattr(near, name, 500)
    monkeypatch.setattr(lists, "TILE", 100)
    monkeypatch.setattr(lists, "ASKED", 5000)
    yield


def looked(how: str) -> tuple[int, int, float]:
    """(lists looked at, lists, share of planted pairs) of what is said."""
    found = re.fullmatch(r"(\d+) of (\d+) lists, which meet ([\d.]+) of pairs planted at the threshold", how)
    assert found, how
    return int(found[1]), int(found[2]), float(found[3])


@pytest.mark.usefixtures("few_at_once")
def test_lists_find_almost_all_that_all_pairs_find(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(3000, 1, width=16, spread=0.02)
    found, how = near.groups(rows, 0.98)
    some, other = near.near_to(rows[:1000], 0.98)
    flags = some(rows[1000:])
    for name in ("EXACT", "EXACT_ON_GPU"):
        monkeypatch.setattr(near, name, 10_000)
    wanted, exact = near.groups(rows, 0.98)
    assert exact == "all pairs" and (found == wanted).mean() > 0.99 and len(np.unique(wanted)) < 1100
    near_them = near.near_to(rows[:1000], 0.98)[0](rows[1000:])
    assert (flags == near_them).mean() > 0.995 and near_them.mean() > 0.1
    for said, count in ((how, 219), (other, 126)):  # four times the root of 3000 and of 1000
        few, all_of_them, met = looked(said)
        assert all_of_them == count and 1 <= few < count / 2 and met >= lists.FOUND


@pytest.mark.usefixtures("few_at_once")
def test_looking_at_all_lists_equals_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(700, 2, width=12, spread=0.05)
    rows[::50] = 0
    monkeypatch.setattr(lists.Lists, "_needed", lambda self, both: (len(self.centres), 1.0))
    found, _ = near.groups(rows, 0.97)
    for name in ("EXACT", "EXACT_ON_GPU"):
        monkeypatch.setattr(near, name, 10_000)
    assert np.array_equal(found, near.groups(rows, 0.97)[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_of_equal_rows_one_is_compared(monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    rows = np.repeat(clustered(6, 3), [40, 1, 1, 30, 20, 2], 0).astype(dtype)
    np.random.default_rng(0).shuffle(rows)
    rows[::3] = 0
    compared, connect = [], near.connect
    monkeypatch.setattr(near, "connect", lambda first, one, two: (compared.append(len(one)), connect(first, one, two)))
    shown: list[int] = []
    first, _ = near.groups(rows, 0.9, shown.append)
    assert sum(compared) <= 15 and shown == [len(rows)]  # pairs of six
    assert first.tolist() == plain_groups(rows, 0.9)


@pytest.mark.usefixtures("few_at_once")
def test_of_equal_rows_of_another_set_one_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(2000, 1, width=16, spread=0.02)
    sizes: list[int] = []
    make = near.Lists
    monkeypatch.setattr(
        near, "Lists", lambda rows, *more, **named: (sizes.append(len(rows)), make(rows, *more, **named))[1]
    )
    others = np.concatenate([rows[:1000], np.repeat(rows[:1], 3000, 0), np.zeros((500, 16), np.float16)])
    flags = near.near_to(others, 0.98)[0](rows)
    nothing, how = near.near_to(np.zeros((600, 16), np.float16), 0.98)
    assert not nothing(rows[:3]).any() and how == "all pairs"
    assert flags[:1000].all() and sizes == [len(np.unique(rows[:1000], axis=0))]


@pytest.mark.usefixtures("few_at_once")
def test_lists_of_rows_that_are_all_but_the_same_are_one_group() -> None:
    rows = np.tile(clustered(1, 0).astype(np.float32), (600, 1)) * np.linspace(1, 1.01, 600, dtype=np.float32)[:, None]
    first, how = near.groups(rows, 0.3)
    assert not first.any() and "lists" in how


@given(n=st.integers(1, 50), seed=st.integers(0, 99))
def test_of_each_group_the_worthiest_stays_and_of_equals_the_first(n: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    label = dice.integers(0, max(n // 3, 1), n)
    first = np.array([int(np.flatnonzero(label == one)[0]) for one in label])
    worth = dice.integers(0, 3, n).astype(float)
    members = [np.flatnonzero(label == one) for one in np.unique(label)]
    wanted = sorted(int(group[np.argmax(worth[group])]) for group in members)
    kept = near.one_of_each(first, worth)
    assert kept.tolist() == wanted
    assert near.grouped(first).tolist() == [int((label == one).sum()) > 1 for one in label]
    sizes = sorted((len(group) for group in members if len(group) > 1), reverse=True)
    shown = near.largest(first, kept, 3)
    assert [len(group) for group in shown] == sizes[:3] and all(group[0] in wanted for group in shown)
    assert all(len({int(label[row]) for row in group}) == 1 for group in shown)


def test_no_rows_are_no_groups() -> None:
    nothing = np.empty((0, 4), np.float32)
    first, _ = near.groups(nothing, 0.9)
    assert len(first) == len(near.one_of_each(first, np.zeros(0))) == 0 and near.largest(first, first, 5) == []
