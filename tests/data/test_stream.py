"""Batches: the same for any number of ranks and workers and from any step, each sample once an epoch."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.data import Source
from clipkit.errors import UserError
from clipkit.shards import Shards, write_selection
from clipkit.types import Batch
from tests.conftest import COUNTS
from tests.data.streams import Train, assert_same, by_position, joined, stack, stream
from tests.samples import CLIPART, Trap, needs_clipart, sample, shape, toy_tokenizer, write_shard

N = sum(COUNTS)
KINDS = ("one", "mixture")


def train_of(kind: str, shards: Path, sources: dict[str, Path]) -> Train:
    """The shards of all tests, or three sources with weights; c has as much as it has samples, as if not given."""
    if kind == "one":
        return shards
    weights = {"a": 2.0, "b": 3.0, "c": 1.0}
    return {name: Source(shards=str(sources[name]), weight=weights[name]) for name in sources}


# The same batches


@pytest.fixture(scope="module")
def straight(shards: Path) -> list[Batch]:
    """Twelve steps, almost four epochs, on one rank without workers."""
    return joined(shards, 0, 12)


@given(
    kind=st.sampled_from(KINDS), lanes=st.integers(1, 30), window=st.sampled_from((None, 1, 4, 9, 1000)),
    seed=st.integers(0, 2**62), first=st.integers(0, 40),
)  # fmt: skip
@settings(max_examples=15)
def test_any_number_of_ranks_gives_the_same_batches(
    shards: Path, sources: dict[str, Path], kind: str, lanes: int, window: int | None, seed: int, first: int
) -> None:
    train, change = train_of(kind, shards, sources), {"batch": 12, "lanes": lanes, "window": window, "seed": seed}
    wanted = joined(train, first, first + 2, **change)
    for world in (2, 3, 4, 6):
        assert_same(joined(train, first, first + 2, world, **change), wanted)


@pytest.mark.parametrize(
    ("kind", "lanes", "world", "workers"),
    [("one", 1, 1, 1), ("one", 1, 2, 2), ("one", 3, 1, 2), ("mixture", 1, 1, 2), ("mixture", 3, 3, 1)],
)
def test_any_number_of_workers_gives_the_same_batches(
    shards: Path, sources: dict[str, Path], kind: str, lanes: int, world: int, workers: int
) -> None:
    train, change = train_of(kind, shards, sources), {"batch": 12, "lanes": lanes}
    assert_same(joined(train, 1, 7, world, workers=workers, **change), joined(train, 1, 7, **change))


@pytest.mark.parametrize("first", range(0, 13, 3))
def test_a_stream_goes_on_from_any_step(shards: Path, straight: list[Batch], first: int) -> None:
    assert_same(joined(shards, first, 12), straight[first:])


def test_a_batch_of_several_parts_equals_smaller_batches_in_a_row(shards: Path) -> None:
    big = joined(shards, 0, 2, batch=600, workers=1)
    small = joined(shards, 0, 12, batch=100)
    assert_same([stack(tuple(small[:6])), stack(tuple(small[6:]))], big)
    assert [len(batch) for batch in big] == [600, 600]


@given(lanes=st.integers(1, 30), window=st.sampled_from((None, 1, 4, 9, 1000)), seed=st.integers(0, 2**62))
@settings(max_examples=25)
def test_every_sample_comes_once_an_epoch_with_its_own_caption(
    shards: Path, lanes: int, window: int | None, seed: int
) -> None:
    batches = joined(shards, 0, 6, batch=10, lanes=lanes, window=window, seed=seed)
    keys = by_position(batches)
    for epoch in (0, 1):
        assert sorted(keys[epoch * N : epoch * N + N]) == [f"{i:05d}" for i in range(N)]
    for batch in batches:
        wanted = toy_tokenizer()([shape(int(key))[1] for key in batch.keys])
        assert torch.equal(batch.text, wanted[:, : batch.text.shape[1]]) and not wanted[:, batch.text.shape[1] :].any()


def test_each_source_of_a_mixture_has_its_share_and_every_sample_once_an_epoch(sources: dict[str, Path]) -> None:
    train = train_of("mixture", sources["a"], sources)
    opened = stream(train, batch=12)
    assert len(opened) == 25 and opened.epochs(5) == {"a": 20 / 13, "b": 30 / 7, "c": 10 / 5}
    keys = by_position(list(opened.batches(0, 13)))
    for first, count, share in ((0, 13, 2), (100, 7, 3), (200, 5, 1)):
        mine = [int(key) for key in keys if first <= int(key) < first + 100]
        assert len(mine) == 13 * 12 * share // 6
        for start in range(0, len(mine) - count, count):
            assert sorted(mine[start : start + count]) == list(range(first, first + count))
        for end in range(len(keys)):
            had = sum(first <= int(key) < first + 100 for key in keys[:end])
            assert abs(6 * had - share * end) < 6


def test_a_source_without_a_weight_counts_by_its_samples(sources: dict[str, Path]) -> None:
    opened = stream({name: Source(shards=str(folder)) for name, folder in sources.items()}, batch=25)
    assert opened.epochs(3) == {"a": 3.0, "b": 3.0, "c": 3.0}
    for batch in opened.batches(0, 2):
        assert sorted(map(int, batch.keys)) == [*range(13), *range(100, 107), *range(200, 205)]


def test_seeds_give_other_orders_and_epochs_other_crops(shards: Path) -> None:
    first, second = joined(shards, 0, 2, batch=N, crop=(0.2, 0.5))
    assert joined(shards, 0, 1, batch=N, seed=6)[0].keys != first.keys
    key = first.keys[0]
    assert not torch.equal(first.images[0], second.images[second.keys.index(key)])


def test_with_lanes_a_rank_has_the_rows_of_few_of_them(tmp_path: Path) -> None:
    for i in range(6):
        write_shard(tmp_path / f"{i}.tar", map(sample, range(4 * i, 4 * i + 4)))
    for world, most in ((1, 6), (2, 3), (3, 2), (6, 1)):
        for rank in range(world):
            batches = list(stream(tmp_path, rank, world, batch=12, lanes=6, window=None).batches(0, 2))
            shards = {int(key) // 4 for batch in batches for key in batch.keys}
            assert len(shards) == most, "six lanes of one shard each"


def test_no_steps_give_no_batches(shards: Path) -> None:
    assert list(stream(shards).batches(3, 3)) == []
    assert [len(batch) for batch in stream(shards, batch=1).batches(0, 2)] == [1, 1]


def test_a_selection_is_all_that_is_trained_on(shards: Path, tmp_path: Path) -> None:
    kept = [0, 3, 7, 8, 9, 18, 19, 24]
    write_selection(Shards(str(shards)), torch.tensor(kept).numpy(), tmp_path / "kept.parquet", {})
    change: dict[str, Any] = {"select": str(tmp_path / "kept.parquet"), "batch": len(kept)}
    for batch in joined(shards, 0, 3, **change):
        assert sorted(map(int, batch.keys)) == kept
    assert_same(joined(shards, 0, 3, 4, **change), joined(shards, 0, 3, **change))
    of_one = {"x": Source(shards=str(shards), select=str(tmp_path / "kept.parquet"))}
    assert len(stream(of_one)) == len(kept) < len(stream({"x": Source(shards=str(shards))}))


@needs_clipart
def test_real_shards_give_whole_batches_to_two_workers() -> None:
    batches = list(stream(CLIPART / "train-*.tar", batch=64, workers=2).batches(40, 42))
    assert [batch.images.shape for batch in batches] == [(64, 3, 16, 16)] * 2
    assert all(not batch.replaced and len(set(batch.keys)) == 64 for batch in batches)


# Opening


@pytest.mark.parametrize(
    ("world", "change", "message"),
    [
        (3, {"batch": 8}, "data.batch: 3 ranks must divide it evenly, got 8; try 6"),
        (4, {"batch": 3}, "data.batch: 4 ranks must divide it evenly, got 3; try 4"),
        (1, {"crop": (0.9, 0.5)}, "data.crop: the least share comes first, got [0.9, 0.5]"),
        (1, {"caption": "text"}, "caption: 'txt' or 'json:KEY' is needed, got 'text'"),
        (1, {"select": "nope"}, "nope: no such selection; `clipkit data filter` and `dedup` write one"),
        (
            1,
            {"caption": {"txt": 0.5, "json:alt": 0.5}},
            "{}: data.caption=json:alt finds no caption in the samples tried; "
            "the .json files have label, number, texts",
        ),
    ],
)
def test_impossible_settings_are_refused(shards: Path, world: int, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        stream(shards, 0, world, **change)
    assert str(error.value) == message.format(shards)


def test_what_is_left_out_and_a_batch_beyond_the_set_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = {"__key__": "x", "jpg": sample(0)["jpg"]}
    write_shard(tmp_path / "a.tar", [sample(0), bare, {"__key__": "y", "txt": b"c"}])
    stream(tmp_path, batch=1)
    left_out = f"{tmp_path}: 1 samples are usable; left out: no image: 1, no txt: 1\n"
    assert capfd.readouterr().err == left_out
    stream(tmp_path, batch=2)
    twice = "data.batch: 2 pairs of 1 samples: a batch holds some of them more than once\n"
    assert capfd.readouterr().err == left_out + twice


def test_the_default_number_of_workers_follows_cores_and_local_ranks(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert stream(shards, workers=None).workers == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert stream(shards, workers=None).workers == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert stream(shards, workers=None).workers == 1


def test_ranks_agree_on_a_fingerprint_that_changes_with_shards_and_shares(
    shards: Path, sources: dict[str, Path]
) -> None:
    mixture = train_of("mixture", shards, sources)
    assert isinstance(mixture, dict)
    other = {**mixture, "a": Source(shards=str(sources["a"]), weight=5.0)}
    prints = {stream(train).fingerprint for train in (shards, mixture, other, sources["a"])}
    assert len(prints) == 4 and stream(mixture, 1, 4).fingerprint == stream(mixture).fingerprint
    assert all(0 <= one < 1 << 62 for one in prints), "it travels as an int64"


def test_webdatasets_pickled_members_pass_through_the_loader_unopened(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "trapped"))
    write_shard(tmp_path / "a.tar", [sample(i, pyd=trap, pickle=trap, pth=trap) for i in range(4)])
    assert len(list(stream(tmp_path, batch=4).batches(0, 2))) == 2
    assert not (tmp_path / "trapped").exists()


LEFT_OPEN = """
import sys
from tests.data.streams import stream
batches = stream(sys.argv[1], workers=2, batch=5).batches(0, 50)
print(len(next(batches)))
"""


def test_a_program_may_end_with_a_stream_still_open(shards: Path) -> None:
    command = [sys.executable, "-c", LEFT_OPEN, str(shards)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and done.stdout == "5\n", done.stderr


def test_sources_have_weights_all_or_none_and_their_shares_are_told(
    shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, bare = Source(shards=str(shards), weight=3.0), Source(shards=str(shards))
    with pytest.raises(UserError, match=r"^data.train: give every source a weight, or none .*: b has none$"):
        stream({"a": one, "b": bare})
    capfd.readouterr()
    stream({"a": one, "b": Source(shards=str(shards), weight=1.0)})
    assert capfd.readouterr().err == "data.train: a 75.0%, b 25.0%\n"
    assert stream({"a": bare, "b": bare}).rows.mixture.shares == (1, 1)


def test_a_shard_with_a_damaged_place_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_shard(tmp_path / "a.tar", map(sample, range(8)))
    write_shard(tmp_path / "b.tar", map(sample, range(2)))
    os.truncate(path, path.stat().st_size // 2)
    stream(tmp_path, batch=2)
    told = capfd.readouterr().err
    assert "; damaged, so that more samples may be missing there: a.tar (truncated)" in told and "b.tar" not in told
