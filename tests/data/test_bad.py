"""Unreadable samples: replaced alike on any ranks and workers, counted by source and reason, and bounded."""

import multiprocessing
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipkit.data import Source, told
from clipkit.data.guard import Guard
from clipkit.errors import BadData, UserError
from clipkit.types import Bad, Batch
from tests.data.streams import assert_same, joined, stream
from tests.samples import encoded, sample, shape, write_shard

ITSELF = b"\xff\xd8\xff"  # begins like a JPEG, and is none
BROKEN: list[tuple[dict[str, bytes], str]] = [
    ({"jpg": ITSELF}, "not a picture"),
    ({"jpg": b"<html>"}, "not a picture"),
    ({"jpg": encoded(shape(1)[0])[:-200]}, "broken picture"),
    ({"jpg": encoded(shape(1)[0].resize((1, 2000)), "PNG")}, "too small"),
    ({"txt": b" "}, "empty caption"),
    ({"txt": b"\xff"}, "caption is not UTF-8"),
]
REASONS = {4: 0, 9: 1, 14: 2, 24: 3, 29: 4, 34: 5}  # of the samples with these numbers


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of twenty samples, three of each broken in different ways."""
    folder = tmp_path_factory.mktemp("broken")
    for i in range(2):
        bad = {n: BROKEN[which][0] for n, which in REASONS.items()}
        write_shard(folder / f"{i}.tar", [sample(n, **bad.get(n, {})) for n in range(i * 20, i * 20 + 20)])
    return folder


def test_unreadable_samples_are_replaced_alike_on_any_ranks_and_workers(broken: Path) -> None:
    wanted = joined(broken, 0, 10, max_bad=1.0)
    assert_same(joined(broken, 0, 10, 2, max_bad=1.0), wanted)
    assert_same(joined(broken, 0, 10, 4, workers=1, max_bad=1.0), wanted)
    assert_same(joined(broken, 6, 10, max_bad=1.0), wanted[6:])
    assert not {f"{n:05d}" for n in REASONS} & {key for batch in wanted for key in batch.keys}
    found = {(bad.source, bad.sample, bad.reason) for batch in wanted for bad in batch.replaced}
    assert found == {("train", f"{broken}/{n // 20}.tar key {n:05d}", BROKEN[which][1]) for n, which in REASONS.items()}


def test_a_replacement_comes_from_the_same_shard_and_others_stay(broken: Path) -> None:
    found = joined(broken, 0, 1, batch=40, max_bad=1.0)[0]
    shards, rows = stream(broken, batch=40).rows.sources[0].order.locate(found.position.numpy())
    for key, shard, row in zip(found.keys, shards.tolist(), rows.tolist(), strict=True):
        assert int(key) // 20 == shard
        if row not in (4, 9, 14):
            assert int(key) == shard * 20 + row
    assert 6 <= len(found.replaced) <= 12


def test_reasons_are_told_by_source(broken: Path, shards: Path) -> None:
    train = {"web": Source(shards=str(broken), weight=4.0), "good": Source(shards=str(shards), weight=1.0)}
    opened = stream(train, batch=50, max_bad=1.0)
    batches = list(opened.batches(0, 4))
    assert_same([part for part in joined(train, 0, 4, 5, batch=50, max_bad=1.0)], batches)
    counted = Counter((bad.source, bad.reason) for batch in batches for bad in batch.replaced)
    assert {source for source, _ in counted} == {"web"} and opened.guard.total == counted
    assert told(opened.guard.total) == ", ".join(f"web: {why}: {n}" for (_, why), n in sorted(counted.items()))
    assert (
        told(Counter({("train", "too small"): 3, ("web", "empty caption"): 1})) == "too small: 3, web: empty caption: 1"
    )
    assert told(Counter()) == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_without_one_readable_sample_names_the_first(tmp_path: Path, workers: int) -> None:
    write_shard(tmp_path / "a.tar", [sample(n, jpg=b"<html>") for n in range(3)])
    with pytest.raises(BadData) as error:
        list(stream(tmp_path, workers=workers, batch=1).batches(0, 1))
    row = stream(tmp_path, batch=1).rows.sources[0].order.locate(torch.arange(1).numpy())[1][0]
    wanted = f"16 samples in a row are unreadable, the first is {tmp_path}/a.tar key {row:05d}: not a picture"
    assert str(error.value) == wanted
    assert not multiprocessing.active_children(), "the workers have left by then"


def test_workers_leave_with_a_loop_that_is_left(shards: Path) -> None:
    batches = stream(shards, workers=2).batches(0, 100)
    assert len(next(batches)) == 8 and len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_a_shard_that_is_gone_on_the_way_is_told_as_the_system_does(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / f"{i}.tar", map(sample, range(4 * i, 4 * i + 4))) for i in range(2)]
    opened = stream(tmp_path, batch=8)
    paths[1].unlink()
    with pytest.raises(BadData) as error:
        list(opened.batches(0, 1))
    assert str(error.value).startswith(f"16 samples in a row are unreadable, the first is {paths[1]} key number ")
    assert str(error.value).endswith(": No such file or directory")


def test_a_shard_that_is_another_than_was_counted_ends_the_run(tmp_path: Path) -> None:
    paths = [write_shard(tmp_path / f"{i}.tar", map(sample, range(4 * i, 4 * i + 4))) for i in range(2)]
    opened = stream(tmp_path, batch=8, workers=1)
    write_shard(paths[1], map(sample, range(5)))
    with pytest.raises(UserError) as error:
        list(opened.batches(0, 1))
    assert str(error.value) == (
        f"{paths[1]}: had 4 samples when this began, now 5: it or its index was changed meanwhile; start again"
    )
    assert error.value.alone, "other ranks may not meet it: this one prints it"


def test_a_shard_that_is_cut_while_it_is_read_is_told_as_that(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", map(sample, range(8)))
    batches = stream(tmp_path, batch=8).batches(0, 2)
    next(batches)
    os.truncate(path, 0)
    with pytest.raises(BadData, match=f"the first is {path} key 0000.: cut short$"):
        next(batches)


# The bound


def test_too_many_unreadable_samples_end_the_run_with_their_reasons(broken: Path) -> None:
    guarded = stream(broken, max_bad=0.1)
    seen, last = 0, ""
    with pytest.raises(BadData) as error:
        for batch in guarded.batches(0, 100):
            seen += len(batch)
    rows, bad = (sum(column) for column in zip(*guarded.guard.recent, strict=True))
    assert rows == seen, "the batch that is too much is handed out, so that its samples can be written down"
    last = str(error.value).partition(", the last is ")[2].partition("; ")[0]
    what = ", ".join(f"{reason}: {count}" for (_, reason), count in sorted(guarded.guard.total.items()))
    assert bad >= 10 and last in {f"{broken}/{n // 20}.tar key {n:05d}" for n in REASONS}
    assert str(error.value) == (
        f"{bad} of the last {rows} samples are unreadable ({what}), the last is {last}; "
        "data.max_bad=0.1 allows fewer; mend the shards, or raise data.max_bad"
    )


def test_a_share_within_the_bound_and_fewer_than_ten_are_let_pass(broken: Path, shards: Path) -> None:
    assert len(list(stream(broken, max_bad=0.5).batches(0, 20))) == 20
    assert len(list(stream(broken, max_bad=0.0).batches(0, 3))) == 3
    assert len(list(stream(shards, max_bad=0.0).batches(0, 20))) == 20


def batch_of(rows: int, bad: int) -> Batch:
    replaced = [Bad("train", f"a.tar key {i}", "broken picture") for i in range(bad)]
    nothing = torch.zeros(1, dtype=torch.uint8).expand(rows)
    return Batch(nothing, nothing, nothing, [], replaced)


@given(
    batches=st.lists(st.tuples(st.sampled_from((1, 7, 300, 4096, 9999, 10_000, 12_345)), st.integers(0, 60))),
    bound=st.sampled_from((0.0, 0.001, 0.01, 0.5, 1.0)),
)
def test_a_guard_equals_counting_the_last_ten_thousand(batches: list[tuple[int, int]], bound: float) -> None:
    guard = Guard(bound)
    for end, (rows, bad) in enumerate(batches, 1):
        first = end - 1  # the fewest batches that hold ten thousand samples, or all of them
        while first > 0 and sum(n for n, _ in batches[first:end]) < 10_000:
            first -= 1
        last = sum(n for n, _ in batches[first:end])
        lost = sum(min(pair) for pair in batches[first:end])  # a row that was replaced twice counts once
        guard.see(batch_of(rows, bad))
        if lost >= 10 and lost > bound * last:
            with pytest.raises(BadData, match=f"^{lost} of the last {last} samples are unreadable"):
                guard.check()
        else:
            guard.check()
        assert guard.total.total() == sum(n for _, n in batches[:end])


def test_a_guard_keeps_few_batches_and_names_the_last_bad_sample() -> None:
    guard = Guard(0.005)
    guard.check()
    for _ in range(5000):
        guard.see(batch_of(100, 0))
    assert len(guard.recent) == 100
    guard.see(batch_of(10_000, 100))
    guard.see(batch_of(1, 0))
    with pytest.raises(BadData, match=r"100 of the last 1000\d samples .* the last is a.tar key 99; data.max"):
        guard.check()
