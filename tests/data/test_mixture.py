"""Several sources in fixed shares: never further than one sample from a share, and the same as counting gives."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data.mixture import FINEST, Mixture, schedule, shares_of

NAMES = "abcdefgh"
SHARES = st.lists(st.integers(1, 60), min_size=1, max_size=8).map(tuple)
WEIGHT = st.one_of(
    st.integers(1, 2000),
    st.decimals("0.01", "50", places=2).map(float),
    st.floats(1e-9, 1e9),
    st.integers(10**6, 10**10).map(float),  # as numbers of samples are
)


# Shares


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ({"a": 7.5}, {"a": 1}),
        ({"a": 3, "b": 1}, {"a": 3, "b": 1}),
        ({"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 1, "b": 2, "c": 3}),  # as they are written, not as floats hold them
        ({"a": 4.0, "b": 6}, {"a": 2, "b": 3}),
        ({"a": 1e-3, "b": 1}, {"a": 1, "b": 1000}),
        ({"a": 65535.0, "b": 1.0}, {"a": 65535, "b": 1}),
        ({"a": 65536.0, "b": 1.0}, {"a": 65535, "b": 1}),
        ({"a": 1e300, "b": 1e-300}, {"a": 65535, "b": 1}),
        ({"a": 1 / 3, "b": 0.7}, {"a": 21141, "b": 44395}),  # 21140.6 and 44395.4
    ],
)
def test_shares_of_examples(weights: dict[str, float], wanted: dict[str, int]) -> None:
    assert shares_of(weights) == wanted and sum(wanted.values()) <= FINEST


@given(weights=st.lists(WEIGHT, min_size=1, max_size=8).map(lambda w: dict(zip(NAMES, w, strict=False))))
@settings(max_examples=300)
def test_shares_are_exact_or_the_nearest_of_the_finest(weights: dict[str, float]) -> None:
    shares = shares_of(weights)
    exact = {name: Fraction(repr(weight)) for name, weight in weights.items()}
    total = sum(exact.values())
    assert list(shares) == list(weights) and min(shares.values()) >= 1
    if all((exact[name] * FINEST / total).denominator == 1 for name in weights):
        assert all(Fraction(share, sum(shares.values())) == exact[name] / total for name, share in shares.items())
    if any(Fraction(share, sum(shares.values())) != exact[name] / total for name, share in shares.items()):
        assert sum(shares.values()) == FINEST, "rounded only where the exact ratio is finer"
        largest = max(exact.values())  # gives what the least ones are rounded up by
        for name, share in shares.items():
            off = abs(share - exact[name] * FINEST / total)
            assert off <= (len(weights) if exact[name] == largest else 1), (name, share)
    assert sum(shares.values()) <= FINEST


@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=8), factor=st.integers(1, 10**6))
def test_only_the_ratio_of_weights_counts(weights: list[int], factor: int) -> None:
    by_name = dict(zip(NAMES, map(float, weights), strict=False))
    assert shares_of(by_name) == shares_of({name: weight * factor for name, weight in by_name.items()})


# Schedule


@given(shares=SHARES)
@settings(max_examples=150)
def test_a_source_is_never_one_sample_from_its_share(shares: tuple[int, ...]) -> None:
    source, period = schedule(shares), sum(shares)
    assert np.bincount(source, minlength=len(shares)).tolist() == list(shares)
    had = np.cumsum(source[:, None] == np.arange(len(shares)), axis=0)  # [period, k]
    due = np.arange(1, period + 1)[:, None] * np.array(shares)  # in parts of the period
    bound = period * (2 * len(shares) - 3) // (2 * len(shares) - 2) if len(shares) > 1 else 0
    assert np.abs(had * period - due).max() <= bound < period


def test_a_schedule_as_long_as_they_get_holds_its_shares() -> None:
    shares = tuple(shares_of({"a": 10968539.0, "b": 14825233.0, "c": 12345.0, "d": 999.0}).values())
    source = schedule(shares)
    had = np.cumsum(source[:, None] == np.arange(4), axis=0)
    due = np.arange(1, FINEST + 1)[:, None] * np.array(shares) / FINEST
    assert len(source) == FINEST and np.abs(had - due).max() <= 1 - 1 / 6


def test_a_schedule_done_by_hand() -> None:
    assert schedule((1,)).tolist() == [0]
    assert schedule((1, 1)).tolist() == [0, 1]
    assert schedule((3, 1)).tolist() == [0, 0, 1, 0]


# Positions


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    shares = draw(SHARES)
    base = draw(st.one_of(st.just(()), st.tuples(*[st.integers(0, 10**6)] * len(shares))))
    return Mixture(shares, draw(st.integers(0, 10**9)), base)


@given(mixture=mixtures(), length=st.integers(0, 400))
@settings(max_examples=100)
def test_splitting_equals_counting(mixture: Mixture, length: int) -> None:
    source, place = mixture.split(np.arange(mixture.start, mixture.start + length))
    turns = schedule(mixture.shares)
    had = list(mixture.base or [0] * len(mixture.shares))
    for i in range(length):
        k = int(turns[i % len(turns)])
        assert mixture.used(mixture.start + i) == had
        assert (source[i], place[i]) == (k, had[k])
        assert abs(mixture.reached(k, had[k]) - (mixture.start + i)) <= sum(mixture.shares)
        had[k] += 1
    assert mixture.used(mixture.start + length) == had


@given(mixture=mixtures(), data=st.data())
def test_positions_are_split_alike_in_any_company(mixture: Mixture, data: st.DataObject) -> None:
    offsets = data.draw(st.lists(st.integers(0, 10**12), max_size=30))
    positions = [mixture.start + offset for offset in offsets]
    source, place = mixture.split(np.array(positions, np.int64))
    assert source.shape == place.shape == (len(positions),)
    for i, position in enumerate(positions):
        assert [column.tolist() for column in mixture.split(np.array([position]))] == [[source[i]], [place[i]]]
        assert mixture.used(position)[source[i]] == place[i]


@given(mixture=mixtures(), weights=st.data(), at=st.integers(0, 10**7))
def test_a_new_phase_goes_on_where_each_source_stands(mixture: Mixture, weights: st.DataObject, at: int) -> None:
    shares = weights.draw(st.tuples(*[st.integers(1, 60)] * len(mixture.shares)))
    change = mixture.start + at
    later = Mixture(shares, change, tuple(mixture.used(change)))
    assert later.used(change) == mixture.used(change)
    source, place = later.split(np.arange(change, change + sum(shares)))
    for k, base in enumerate(later.base):
        assert place[source == k].tolist() == list(range(base, base + shares[k]))


def test_one_source_has_every_position() -> None:
    source, place = Mixture((1,)).split(np.array([0, 5, 10**15]))
    assert source.tolist() == [0, 0, 0] and place.tolist() == [0, 5, 10**15]
