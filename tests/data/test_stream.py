"""Batches: the same for any number of ranks and workers and from any step; unreadable samples replaced and bounded."""

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.data import Settings, Stream, open_stream
from clipkit.errors import BadData, UserError
from clipkit.types import Batch, Preprocess
from tests.conftest import COUNTS
from tests.samples import CLIPART, Trap, encoded, needs_clipart, sample, shape, toy_tokenizer, write_shard

SHAPE = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
N = sum(COUNTS)
ITSELF = b"\xff\xd8\xff"  # begins like a JPEG, and is none


def stream(folder: Path, rank: int = 0, world: int = 1, seed: int = 5, **change: Any) -> Stream:
    usual = {"train": str(folder), "batch": 8, "workers": 0, "window": 9}
    return open_stream(Settings(**{**usual, **change}), toy_tokenizer(), SHAPE, seed, rank, world)


def joined(folder: Path, first: int, end: int, world: int = 1, **change: Any) -> list[Batch]:
    """The global batches of steps first .. end - 1, put together from all ranks."""
    ranks = [list(stream(folder, rank, world, **change).batches(first, end)) for rank in range(world)]
    return [_stack(parts) for parts in zip(*ranks, strict=True)]


def _stack(parts: tuple[Batch, ...]) -> Batch:
    width = max(part.text.shape[1] for part in parts)
    texts = [torch.nn.functional.pad(part.text, (0, width - part.text.shape[1])) for part in parts]
    replaced = [bad for part in parts for bad in part.replaced]
    images, positions = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "position"))
    return Batch(images, torch.cat(texts), positions, [key for part in parts for key in part.keys], replaced)


def assert_same(found: list[Batch], wanted: list[Batch]) -> None:
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        assert one.keys == two.keys and one.replaced == two.replaced
        for name in ("position", "images", "text"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name


# The same batches


@pytest.fixture(scope="module")
def straight(shards: Path) -> list[Batch]:
    """Twelve steps, almost four epochs, on one rank without workers."""
    return joined(shards, 0, 12)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_ranks_and_workers_gives_the_same_batches(
    shards: Path, straight: list[Batch], world: int, workers: int
) -> None:
    assert_same(joined(shards, 0, 12 if world == 1 else 5, world, workers=workers), straight[: 12 if world == 1 else 5])


@pytest.mark.parametrize("first", range(0, 13, 3))
def test_a_stream_goes_on_from_any_step(shards: Path, straight: list[Batch], first: int) -> None:
    assert_same(joined(shards, first, 12), straight[first:])


def test_a_chain_of_resumes_on_changing_ranks_and_workers_equals_one_run(shards: Path, straight: list[Batch]) -> None:
    found: list[Batch] = []
    state = json.loads(json.dumps(stream(shards).state(0)))
    for world, workers, steps in ((2, 0, 2), (4, 1, 3), (1, 2, 1), (8, 0, 4), (1, 0, 2)):
        step = stream(shards, 0, world).resume(state)
        assert step == len(found)
        found += joined(shards, step, step + steps, world, workers=workers)
        state = json.loads(json.dumps(stream(shards, world - 1, world).state(step + steps)))
    assert_same(found, straight)


def test_a_batch_of_several_parts_equals_smaller_batches_in_a_row(shards: Path) -> None:
    big = joined(shards, 0, 2, batch=600, workers=1)
    small = joined(shards, 0, 12, batch=100)
    assert_same([_stack(tuple(small[:6])), _stack(tuple(small[6:]))], big)
    assert [len(batch) for batch in big] == [600, 600]


def test_a_sample_and_its_caption_stay_together_and_come_once_an_epoch(shards: Path) -> None:
    batches = joined(shards, 0, 2, batch=N)
    for batch in batches:
        assert sorted(batch.keys) == [f"{i:05d}" for i in range(N)]
        wanted = toy_tokenizer()([shape(int(key))[1] for key in batch.keys])
        assert torch.equal(batch.text, wanted[:, : batch.text.shape[1]]) and not wanted[:, batch.text.shape[1] :].any()
    assert batches[0].keys != batches[1].keys
    assert torch.cat([batch.position for batch in batches]).tolist() == list(range(2 * N))


def test_a_caption_is_drawn_from_the_list_under_a_json_key(shards: Path) -> None:
    batches = joined(shards, 0, 20, batch=N, caption="json:texts")
    drawn: dict[str, set[int]] = {}
    for batch in batches:
        for key, text in zip(batch.keys, batch.text, strict=True):
            choices = toy_tokenizer()([shape(int(key))[1], f"{shape(int(key))[1]}, again"])[:, : len(text)].tolist()
            drawn.setdefault(key, set()).add(choices.index(text.tolist()))
    assert len(drawn) == N and all(numbers == {0, 1} for numbers in drawn.values())


def test_seeds_give_other_orders_and_epochs_other_crops(shards: Path) -> None:
    first, second = joined(shards, 0, 2, batch=N, crop=(0.2, 0.5))
    assert joined(shards, 0, 1, batch=N, seed=6)[0].keys != first.keys
    key = first.keys[0]
    assert not torch.equal(first.images[0], second.images[second.keys.index(key)])


def test_no_steps_give_no_batches(shards: Path) -> None:
    assert list(stream(shards).batches(3, 3)) == []
    assert [len(batch) for batch in stream(shards, batch=1).batches(0, 2)] == [1, 1]


@needs_clipart
def test_real_shards_give_whole_batches_to_two_workers() -> None:
    batches = list(stream(CLIPART / "train-*.tar", batch=64, workers=2).batches(40, 42))
    assert [batch.images.shape for batch in batches] == [(64, 3, 16, 16)] * 2
    assert all(not batch.replaced and len(set(batch.keys)) == 64 for batch in batches)


# What a checkpoint keeps


def test_a_stream_knows_its_data_again(shards: Path) -> None:
    state = stream(shards).state(7)
    assert state["samples"] == 56 and stream(shards, workers=1, max_bad=0.5).resume(state) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "the run saw seed 5, now it is 6; "),
        ({"window": 10}, "the run saw window 9, now it is 10; "),
        ({"train": "00[0-2].tar"}, "the run saw source {'shards': 4, 'samples': 25, 'fingerprint': '"),
    ],
)
def test_other_data_is_refused_with_what_changed(
    shards: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(shards)
    with pytest.raises(UserError) as error:
        stream(shards, **change).resume(stream(shards).state(7))
    assert str(error.value).startswith(f"{change.get('train', shards)}: {message}")
    assert str(error.value).endswith("; give it the same shards, or start a new run")


@pytest.mark.parametrize(
    ("world", "change", "message"),
    [
        (3, {"batch": 8}, "data.batch: 3 ranks must divide it evenly, got 8; try 6"),
        (4, {"batch": 3}, "data.batch: 4 ranks must divide it evenly, got 3; try 4"),
        (1, {"crop": (0.9, 0.5)}, "data.crop: the least share comes first, got [0.9, 0.5]"),
        (1, {"caption": "text"}, "caption: 'txt' or 'json:KEY' is needed, got 'text'"),
    ],
)
def test_impossible_settings_are_refused(shards: Path, world: int, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        stream(shards, 0, world, **change)
    assert str(error.value) == message


def test_what_the_index_left_out_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bare = {"__key__": "x", "jpg": sample(0)["jpg"]}
    write_shard(tmp_path / "a.tar", [sample(0), bare, {"__key__": "y", "txt": b"c"}])
    stream(tmp_path)
    assert capfd.readouterr().err == f"{tmp_path}: 1 samples are usable; left out: no image: 1, no txt: 1\n"


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


# Unreadable samples

BROKEN: list[dict[str, bytes]] = [
    {"jpg": ITSELF},
    {"jpg": b"<html>"},
    {"jpg": encoded(shape(1)[0])[:-200]},
    {"jpg": encoded(shape(1)[0].resize((1, 2000)), "PNG")},
    {"txt": b" "},
    {"txt": b"\xff"},
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of twenty samples, three of each broken in different ways."""
    folder = tmp_path_factory.mktemp("broken")
    for i in range(2):
        bad = {i * 20 + 4 + 5 * j: members for j, members in enumerate(BROKEN[i * 3 : i * 3 + 3])}
        write_shard(folder / f"{i}.tar", [sample(n, **bad.get(n, {})) for n in range(i * 20, i * 20 + 20)])
    return folder


def test_unreadable_samples_are_replaced_alike_on_any_ranks_and_workers(broken: Path) -> None:
    wanted = joined(broken, 0, 10, max_bad=1.0)
    assert_same(joined(broken, 0, 10, 2, max_bad=1.0), wanted)
    assert_same(joined(broken, 0, 10, 4, workers=1, max_bad=1.0), wanted)
    bad = {f"{n:05d}" for n in (4, 9, 14, 24, 29, 34)}
    assert not bad & {key for batch in wanted for key in batch.keys}
    kinds = {reason for batch in wanted for reason in batch.replaced}
    assert kinds == {"not a picture", "broken picture", "too small", "empty caption", "UnicodeDecodeError"}


def test_a_replacement_comes_from_the_same_shard_and_others_stay(broken: Path) -> None:
    found = joined(broken, 0, 1, batch=40, max_bad=1.0)[0]
    order = stream(broken, batch=40).rows.order
    shards, rows = order.locate(found.position.numpy())
    for key, shard, row in zip(found.keys, shards.tolist(), rows.tolist(), strict=True):
        assert int(key) // 20 == shard
        if row not in (4, 9, 14):
            assert int(key) == shard * 20 + row
    assert 6 <= sum(found.replaced.values()) <= 12


def test_too_many_unreadable_samples_end_the_run_with_their_reasons(broken: Path) -> None:
    guarded = stream(broken, max_bad=0.1)
    seen = 0
    with pytest.raises(BadData) as error:
        for batch in guarded.batches(0, 100):
            seen += len(batch)
    bad, rows = sum(guarded.guard.total.values()), seen + 8
    what = ", ".join(f"{reason}: {count}" for reason, count in sorted(guarded.guard.total.items()))
    assert bad >= 10 and str(error.value) == (
        f"{bad} of the last {rows} samples are unreadable ({what}), data.max_bad=0.1 allows fewer; "
        "mend the shards, or raise data.max_bad"
    )


def test_a_share_within_the_bound_and_fewer_than_ten_are_let_pass(broken: Path, shards: Path) -> None:
    assert len(list(stream(broken, max_bad=0.5).batches(0, 20))) == 20
    assert len(list(stream(broken, max_bad=0.0).batches(0, 3))) == 3
    assert len(list(stream(shards, max_bad=0.0).batches(0, 20))) == 20


def test_the_bound_is_of_the_last_ten_thousand_samples(shards: Path) -> None:
    guard = stream(shards, max_bad=0.01).guard
    blank = next(iter(stream(shards).batches(0, 1)))
    thousand = Batch(blank.images[:1].expand(1000, 3, 16, 16), blank.text, blank.position, blank.keys)
    dirty = dataclasses.replace(thousand, replaced={"broken picture": 90})
    for _ in range(20):
        guard.see(thousand)
    guard.see(dirty)
    for _ in range(9):
        guard.see(thousand)
    with pytest.raises(BadData, match="^180 of the last 10000 samples are unreadable"):
        guard.see(thousand)
        guard.see(dirty)
        guard.see(dirty)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_without_one_readable_sample_names_the_first(tmp_path: Path, workers: int) -> None:
    write_shard(tmp_path / "a.tar", [sample(n, jpg=ITSELF) for n in range(3)])
    with pytest.raises(BadData) as error:
        list(stream(tmp_path, workers=workers, batch=1).batches(0, 1))
    key = stream(tmp_path).rows.order.locate(torch.arange(1).numpy())[1][0]
    wanted = f"16 samples in a row are unreadable, the first is {tmp_path}/a.tar key {key:05d}: not a picture"
    assert str(error.value) == wanted


def test_webdatasets_pickled_members_pass_through_the_loader_unopened(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "trapped"))
    write_shard(tmp_path / "a.tar", [sample(i, pyd=trap, pickle=trap, pth=trap) for i in range(4)])
    assert len(list(stream(tmp_path, batch=4).batches(0, 2))) == 2
    assert not (tmp_path / "trapped").exists()
