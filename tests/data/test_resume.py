"""What a checkpoint keeps of the data: a resumed run goes on to the sample, and other data is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data import Source, Stream
from clipkit.data import stream as module
from clipkit.errors import UserError
from clipkit.shards import Shards, write_selection
from clipkit.types import Batch
from tests.data.conftest import COUNTS, FIRST
from tests.data.streams import Train, assert_same, by_position, joined, stream
from tests.samples import sample, write_shard

NAMES = ("a", "b", "c")


def mixed(sources: dict[str, Path], weights: dict[str, float]) -> dict[str, Source]:
    """A recipe of these sources, in this order."""
    return {name: Source(shards=str(sources[name]), weight=weight) for name, weight in weights.items()}


def kept(opened: Stream, step: int) -> dict[str, Any]:
    """The state as a checkpoint's file gives it back."""
    state = opened.state(step)
    read = json.loads(json.dumps(state))
    assert read == state, "nothing in it is changed by JSON"
    return read


# The same data


@given(
    kind=st.sampled_from(("one", "mixture")), lanes=st.sampled_from((1, 3)), window=st.sampled_from((None, 4, 9)),
    steps=st.tuples(*[st.integers(0, 3)] * 4), seed=st.integers(0, 2**62),
)  # fmt: skip
@settings(max_examples=15)
def test_a_chain_of_resumes_on_changing_ranks_equals_one_run(
    shards: Path, sources: dict[str, Path], kind: str, lanes: int, window: int | None, steps: tuple[int, ...], seed: int
) -> None:
    train: Train = shards if kind == "one" else mixed(sources, {"a": 2.0, "b": 3.0, "c": 1.0})
    change = {"batch": 12, "lanes": lanes, "window": window, "seed": seed}
    found: list[Batch] = []
    state = kept(stream(train, **change), 0)
    for world, count in zip((2, 4, 1, 3), steps, strict=True):
        found += joined(train, len(found), len(found) + count, world, state, **change)
        last = stream(train, world - 1, world, **change)
        last.resume(state)
        state = kept(last, len(found))
    assert_same(found, joined(train, 0, sum(steps), **change))


def test_a_chain_of_resumes_on_changing_workers_equals_one_run(shards: Path) -> None:
    found: list[Batch] = []
    for world, workers, steps in ((2, 0, 2), (4, 1, 3), (1, 2, 1), (8, 0, 4)):
        state = kept(stream(shards, world - 1, world), len(found))
        found += joined(shards, len(found), len(found) + steps, world, state, workers=workers)
    assert_same(found, joined(shards, 0, 10))


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_order_of_names_in_a_recipe_does_not_matter_on_resume(sources: dict[str, Path], lanes: int) -> None:
    weights = {"a": 2.0, "b": 3.0, "c": 1.0}
    straight = joined(mixed(sources, weights), 0, 9, batch=12, lanes=lanes)
    state = kept(stream(mixed(sources, weights), batch=12, lanes=lanes), 2)
    for names in (("c", "b", "a"), ("b", "a", "c")):
        turned = mixed(sources, {name: weights[name] for name in names})
        assert_same(joined(turned, 2, 6, 2, state, batch=12, lanes=lanes), straight[2:6])
        again = stream(turned, batch=12, lanes=lanes)
        again.resume(state)
        assert_same(joined(mixed(sources, weights), 6, 9, 1, kept(again, 6), batch=12, lanes=lanes), straight[6:])


def test_a_state_names_what_it_was_made_of(sources: dict[str, Path]) -> None:
    state = kept(stream(mixed(sources, {"a": 2.0, "b": 3.0}), batch=10, caption="txt"), 7)
    facts = {name: state["sources"][name].pop("fingerprint") for name in ("a", "b")}
    assert all(len(one) == 16 for one in facts.values())
    assert state == {
        "version": 2, "samples": 70, "seed": 5, "window": 9, "lanes": 1,
        "phase": {"start": 0, "shares": {"a": 2, "b": 3}, "base": {"a": 0, "b": 0}},
        "sources": {
            "a": {"shards": 3, "samples": 13, "caption": "txt", "counts": {"0.tar": 5, "1.tar": 0, "2.tar": 8}},
            "b": {"shards": 2, "samples": 7, "caption": "txt", "counts": {"0.tar": 4, "1.tar": 3}},
        },
    }  # fmt: skip


def test_workers_bounds_and_the_crop_may_change(shards: Path) -> None:
    state = kept(stream(shards), 7)
    assert stream(shards, workers=1, max_bad=0.5, crop=(0.5, 1.0)).resume(state) == 7


# Another batch


@pytest.mark.parametrize(("batch", "step"), [(1, 56), (4, 14), (7, 8), (28, 2), (56, 1)])
def test_a_batch_that_meets_the_sample_goes_on_there(shards: Path, batch: int, step: int) -> None:
    state = kept(stream(shards), 7)
    one, eight = by_position(joined(shards, step, step + 2, 1, state, batch=batch)), by_position(joined(shards, 7, 21))
    assert one == eight[: 2 * batch]


def test_a_batch_that_does_not_meet_the_sample_is_refused(shards: Path) -> None:
    with pytest.raises(UserError) as error:
        stream(shards, batch=12).resume(kept(stream(shards), 7))
    wanted = "data.batch: the run stands at sample 56, which batches of 12 do not meet; "
    assert str(error.value) == wanted + "give the batch that it had"


# Another mixture


def reference(sources: dict[str, Path], name: str, n: int, **change: Any) -> list[str]:
    """The first `n` keys of a source, whatever stands beside it."""
    alone = stream(mixed(sources, {name: 1.0}), **change).rows.sources[0]
    shards, rows = alone.order.locate(np.arange(n))
    return [alone.shards.key(shard, row) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]


PHASE = st.tuples(
    st.permutations(NAMES), st.integers(1, 3), st.tuples(*[st.sampled_from((1.0, 2.0, 2.5, 5.0, 0.3))] * 3),
    st.integers(0, 3), st.sampled_from((1, 2, 3, 6)),
)  # fmt: skip


@given(phases=st.lists(PHASE, min_size=2, max_size=5), lanes=st.sampled_from((1, 3)))
@settings(max_examples=20)
def test_through_any_changes_of_the_mixture_each_source_goes_on_where_it_stands(
    sources: dict[str, Path], phases: list[Any], lanes: int
) -> None:
    state, found = None, []
    change = {"batch": 6, "lanes": lanes}
    for names, count, weights, steps, world in phases:
        recipe = mixed(sources, dict(zip(names[:count], weights, strict=False)))
        first = state["samples"] // 6 if state else 0
        found += joined(recipe, first, first + steps, world, state, **change)
        opened = stream(recipe, 0, world, **change)
        if state:
            opened.resume(state)
        state = kept(opened, first + steps)
    keys = by_position(found) if found else []
    used = dict.fromkeys(NAMES, 0)
    for name in NAMES:
        mine = [key for key in keys if FIRST[name] <= int(key) < FIRST[name] + 100]
        assert mine == reference(sources, name, len(mine), **change)
        size, used[name] = sum(COUNTS[name]), len(mine)
        for start in range(0, len(mine) - size + 1, size):
            assert len(set(mine[start : start + size])) == size, "exactly once an epoch of the source"
    assert sum(used.values()) == len(keys)


def test_a_source_that_left_and_came_again_goes_on_where_it_was(
    sources: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    both, one = mixed(sources, {"a": 1.0, "b": 1.0}), mixed(sources, {"a": 1.0})
    state = kept(stream(both), 1)
    capfd.readouterr()
    without = stream(one)
    assert without.resume(state) == 1 and without.epochs(3) == {"a": 20 / 13}
    said = "data.train: other sources or weights from sample 8 on; each source goes on where it stands\n"
    assert capfd.readouterr().err == said
    state = kept(without, 3)
    assert state["phase"] == {"start": 8, "shares": {"a": 1}, "base": {"a": 4, "b": 4}}
    again = stream(both)
    assert again.resume(state) == 3 and again.epochs(4) == {"a": 24 / 13, "b": 8 / 7}
    assert kept(again, 3)["phase"] == {"start": 24, "shares": {"a": 1, "b": 1}, "base": {"a": 20, "b": 4}}
    quiet = stream(both)
    capfd.readouterr()
    assert quiet.resume(kept(again, 4)) == 4 and capfd.readouterr().err == "", "the same phase goes on"


# Other data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "{}: the run saw seed 5, now it is 6; give it the same, or start a new run"),
        ({"window": 10}, "{}: the run saw window 9, now it is 10; give it the same, or start a new run"),
        ({"window": None}, "{}: the run saw window 9, now it is None; give it the same, or start a new run"),
        ({"lanes": 2}, "{}: the run saw lanes 1, now it is 2; give it the same, or start a new run"),
        (
            {"caption": "json:texts"},
            "{}: the run read captions from txt, now from json:texts; start a new run",
        ),
        (
            {"caption": {"txt": 0.5, "json:texts": 0.5}},
            "{}: the run read captions from txt, now from {{'txt': 0.5, 'json:texts': 0.5}}; start a new run",
        ),
    ],
)
def test_settings_that_would_give_another_order_are_refused(shards: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        stream(shards, **change).resume(kept(stream(shards), 7))
    assert str(error.value) == message.format(shards)


def test_a_state_of_another_version_is_refused(shards: Path) -> None:
    for state in ({}, {"version": 1, "samples": 8}):
        with pytest.raises(UserError) as error:
            stream(shards).resume(state)
        wanted = f"{shards}: the run's data.json is of another version of clipkit; start a new run"
        assert str(error.value) == wanted


@pytest.fixture
def mutable(tmp_path: Path) -> Path:
    """Three shards of two samples."""
    (tmp_path / "set").mkdir()
    for i in range(3):
        write_shard(tmp_path / "set" / f"{i}.tar", map(sample, range(2 * i, 2 * i + 2)))
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("shards", "now", "changed"),
    [
        ({"1.tar": None}, "4 in 2", "1.tar is missing"),
        ({"3.tar": 5}, "11 in 4", "3.tar is new"),
        ({"2.tar": 1}, "5 in 3", "2.tar had 2 samples, now 1"),
        ({"0.tar": None, "1.tar": 3, "4.tar": 1}, "6 in 3",
         "0.tar is missing, 4.tar is new, 1.tar had 2 samples, now 3"),
        ({"0.tar": 1, "1.tar": 1, "2.tar": None, "3.tar": 1}, "3 in 3",
         "2.tar is missing, 3.tar is new, 0.tar had 2 samples, now 1"),
    ],
)  # fmt: skip
def test_other_shards_are_refused_with_the_first_three_named(
    mutable: Path, shards: dict[str, int | None], now: str, changed: str
) -> None:
    state = kept(stream(mutable, batch=1), 1)
    change_shards(mutable, shards)
    with pytest.raises(UserError) as error:
        stream(mutable, batch=1).resume(state)
    wanted = f"{mutable}: the run saw 6 samples in 3 shards, now there are {now} ({changed}); "
    assert str(error.value) == wanted + "give it the same shards, or start a new run"


def change_shards(folder: Path, shards: dict[str, int | None]) -> None:
    for name, count in shards.items():
        (folder / name).unlink(missing_ok=True)
        if count is not None:
            write_shard(folder / name, map(sample, range(count)))


def test_another_selection_is_refused(mutable: Path, tmp_path: Path) -> None:
    for name, numbers in (("one", [0, 1, 2]), ("two", [0, 1, 3])):
        write_selection(Shards(str(mutable)), np.array(numbers), tmp_path / name, {})
    state = kept(stream(mutable, batch=1, select=str(tmp_path / "one")), 1)
    assert stream(mutable, batch=1, select=str(tmp_path / "one")).resume(state) == 1
    with pytest.raises(UserError) as error:
        stream(mutable, batch=1, select=str(tmp_path / "two")).resume(state)
    assert "(names, counts or the selection differ); give it the same shards" in str(error.value)


def test_of_very_many_shards_a_state_keeps_no_list(mutable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED", 2)
    state = kept(stream(mutable, batch=1), 1)
    assert state["sources"]["train"]["counts"] is None
    change_shards(mutable, {"1.tar": None})
    with pytest.raises(UserError, match=r"now there are 4 in 2 \(0.tar is new, 2.tar is new\)"):
        stream(mutable, batch=1).resume(state)


def test_a_source_that_left_may_not_come_again_as_another(mutable: Path, sources: dict[str, Path]) -> None:
    both = {"a": mixed(sources, {"a": 1.0})["a"], "x": Source(shards=str(mutable), weight=1.0)}
    without = stream({"a": both["a"]})
    without.resume(kept(stream(both), 1))
    state = kept(without, 2)
    assert stream(both).resume(state) == 2
    change_shards(mutable, {"0.tar": 1})
    with pytest.raises(UserError, match=r"now there are 5 in 3 \(0.tar had 2 samples, now 1\)"):
        stream(both).resume(state)


def test_a_folder_may_move(mutable: Path, tmp_path: Path) -> None:
    straight, state = joined(mutable, 0, 5, batch=2), kept(stream(mutable, batch=2), 2)
    mutable.rename(tmp_path / "moved")
    assert_same(joined(tmp_path / "moved", 2, 5, 1, state, batch=2), straight[2:])
