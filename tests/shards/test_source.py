"""Shards as one sequence: which samples count, and what is read of them."""

import gc
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.errors import UserError
from clipkit.shards import Shards, caption_of, record, write_selection
from clipkit.shards import source as module
from clipkit.shards.source import Wanted
from tests.conftest import COUNTS
from tests.samples import CLIPART, Trap, needs_clipart, sample, write_shard, write_tar

PAIR = ("image", "txt")
EITHER = ("image", ("txt", "json"))


# Samples


def test_every_sample_is_read_back_as_it_was_written(shards: Path) -> None:
    source = Shards(str(shards), PAIR)
    assert source.counts.tolist() == list(COUNTS) and len(source) == sum(COUNTS) and source.lost == {}
    for number in range(len(source)):
        wanted, (shard, row) = sample(number), source.place(number)
        assert source.key(shard, row) == wanted["__key__"] and source.indexed(shard, row) == row
        assert source.name(number) == f"{shards}/{shard:03d}.tar key {number:05d}" == source.said(shard, row)
        assert source.image(number) == source.read(shard, row, "image") == wanted["jpg"]
        assert source.read(shard, row, "json") == wanted["json"]
        assert caption_of(source, shard, row, "txt") == [wanted["txt"].decode()]
        assert caption_of(source, shard, row, "json:texts") == json.loads(wanted["json"])["texts"]


def test_a_sample_without_a_wanted_member_is_left_out_and_counted(tmp_path: Path) -> None:
    members = [("0.jpg", b"p"), ("0.txt", b"c"), ("1.jpg", b"p"), ("2.txt", b"c"), ("3.jpg", b""), ("3.txt", b"c")]
    members += [("4.jpg", b"p"), ("4.txt", b""), ("5.jpg", b"p"), ("5.txt", b"c"), ("readme.md", b"")]
    write_tar(tmp_path / "a.tar", members)
    source = Shards(str(tmp_path), PAIR)
    assert [source.key(*source.place(i)) for i in range(len(source))] == ["0", "5"]
    assert source.lost == {"no txt": 2, "no image": 2, "empty image": 1}
    assert source.told_lost() == "; left out: empty image: 1, no image: 2, no txt: 2"
    assert [source.indexed(0, row) for row in (0, 1)] == [0, 3]
    whole = Shards(str(tmp_path))
    assert len(whole) == 4 and whole.lost == {"no image": 2, "empty image": 1}


def test_of_a_group_of_members_one_is_enough(tmp_path: Path) -> None:
    members = [("0.jpg", b"p"), ("0.txt", b"c"), ("1.jpg", b"p"), ("1.json", b"{}"), ("2.jpg", b"p"), ("2.txt", b"")]
    write_tar(tmp_path / "a.tar", [*members, ("3.jpg", b"p"), ("3.txt", b"c"), ("3.json", b"{}")])
    source = Shards(str(tmp_path), EITHER)
    assert [source.key(*source.place(i)) for i in range(len(source))] == ["0", "1", "3"]
    assert source.lost == {"no txt or json": 1}
    assert len(Shards(str(tmp_path), PAIR)) == len(Shards(str(tmp_path), ("image", "json"))) == 2


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any))
@settings(max_examples=25)
def test_flat_numbers_and_places_are_one_to_one(tmp_path_factory: pytest.TempPathFactory, counts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("places")
    for i, count in enumerate(counts):
        write_tar(folder / f"{i}.tar", [(f"{i}-{row}.jpg", b"p") for row in range(count)])
    source = Shards(str(folder))
    wanted = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert [source.place(number) for number in range(len(source))] == wanted
    assert [source.key(*place) for place in wanted] == [f"{shard}-{row}" for shard, row in wanted]


def test_shards_without_samples_lie_between_others(tmp_path: Path) -> None:
    for i, count in enumerate((0, 2, 0, 0, 1, 0)):
        write_shard(tmp_path / f"{i}.tar", map(sample, range(count)))
    source = Shards(str(tmp_path))
    assert [source.place(i) for i in range(3)] == [(1, 0), (1, 1), (4, 0)]
    assert source.counts.tolist() == [0, 2, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (PAIR, "{}: no sample has image and txt; the members that are there: jpg, png.seg; "),
        (EITHER, "{}: no sample has image and txt or json; the members that are there: jpg, png.seg; "),
        (("image", "cls"), "{}: no sample has image and cls; the members that are there: jpg, png.seg; "),
    ],
)
def test_where_no_sample_is_left_the_members_that_are_there_are_named(
    tmp_path: Path, wanted: Wanted, message: str
) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", b"p"), ("0.png.seg", b"s")])
    with pytest.raises(UserError) as error:
        Shards(str(tmp_path), wanted)
    assert str(error.value) == message.format(tmp_path) + "data.caption chooses the caption: txt, or json:KEY"


def test_an_empty_shard_says_that_it_holds_no_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match="the members that are there: none; data.caption"):
        Shards(str(tmp_path))
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(UserError, match="the members that are there: none; left out: empty file: 1; data.caption"):
        Shards(str(tmp_path))


def test_the_fingerprint_changes_with_names_counts_and_the_selection_alone(tmp_path: Path) -> None:
    def opened(*shards: tuple[str, int], select: str | None = None) -> Shards:
        folder = tmp_path / "-".join(f"{name}{count}" for name, count in shards)
        folder.mkdir(exist_ok=True)
        for name, count in shards:
            write_shard(folder / name, map(sample, range(count)))
        return Shards(str(folder), select=select)

    base = opened(("a.tar", 2), ("b.tar", 1))
    assert opened(("a.tar", 2), ("b.tar", 1)).fingerprint == base.fingerprint
    others = {opened(("a.tar", 1), ("b.tar", 2)).fingerprint, opened(("a.tar", 2), ("c.tar", 1)).fingerprint}
    for name, numbers in (("one", [0, 2]), ("two", [1, 2]), ("all", [0, 1, 2])):
        write_selection(base, np.array(numbers), tmp_path / name, {})
        others.add(opened(("a.tar", 2), ("b.tar", 1), select=str(tmp_path / name)).fingerprint)
    assert len(others - {base.fingerprint}) == 5


def test_a_record_tells_where_the_picture_lies(shards: Path) -> None:
    told = record(Shards(str(shards)), 8, "json:texts")
    with open(told["shard"], "rb") as file:
        file.seek(told["offset"])
        assert file.read(told["size"]) == sample(8)["jpg"]
    assert told["key"] == "00008" and told["caption"] == json.loads(sample(8)["json"])["texts"][0]


@pytest.mark.parametrize("members", [{"txt": b" \n"}, {"txt": b"\xff\xfe"}, {"txt": b""}])
def test_a_record_without_a_usable_caption_has_an_empty_one(tmp_path: Path, members: dict[str, bytes]) -> None:
    write_shard(tmp_path / "a.tar", [sample(0, **members)])
    assert record(Shards(str(tmp_path)), 0)["caption"] == ""


# Files


def test_a_member_that_is_not_there_is_a_value_error_and_a_cut_file_an_os_error(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", map(sample, range(2)))
    source = Shards(str(tmp_path))
    assert source.span(0, 0, "cls") == (-1, -1)
    source.soon(np.array([0, 0, 0]), np.array([0, 1, 99]))  # what is not there is met when it is read
    with pytest.raises(ValueError, match="^fewer samples than claimed$"):
        source.read(0, 2, "image")
    assert source.key(0, 2) == "number 2"
    with pytest.raises(ValueError, match="^no cls$"):
        source.read(0, 0, "cls")
    os.truncate(path, source.span(0, 1, "image")[0] + 1)
    with pytest.raises(OSError, match="a.tar: cut short since it was indexed"):
        source.read(0, 1, "image")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_open_files_are_few_and_closed_with_their_source(tmp_path: Path) -> None:
    member = [("0.jpg", b"p")]
    for i in range(300):
        write_tar(tmp_path / f"{i:03d}.tar", member)
    gc.collect()
    before = open_files()
    source = Shards(str(tmp_path))
    assert [source.image(i) for i in [*range(300), 0, *range(299, -1, -1)]] == [b"p"] * 601
    assert before + 250 < open_files() <= before + 256
    copied = pickle.loads(pickle.dumps(source))
    del source
    assert open_files() == before
    assert copied.image(299) == b"p", "a copy for another process opens its own files"


def test_pickled_members_are_never_unpickled(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "trapped"))
    odd = {"pyd": trap, "pickle": trap, "pkl": trap, "pth": trap, "npy": trap, "cls": trap}
    write_shard(tmp_path / "a.tar", [sample(i, **odd) for i in range(3)])
    source = Shards(str(tmp_path), PAIR)
    assert len(source) == 3 and source.read(0, 0, "cls") == trap
    assert record(source, 0)["caption"] and source.image(2) == sample(2)["jpg"]
    assert not (tmp_path / "trapped").exists()


@needs_clipart
def test_real_shards_hold_what_their_statistics_say_and_equal_tarfile(cache: Path) -> None:
    stats = json.loads((CLIPART / "stats.json").read_text())
    assert len(Shards(f"{CLIPART}/train-*.tar", PAIR)) == stats["train"]
    source = Shards(f"{CLIPART}/test-{{00000..00001}}.tar", PAIR)
    assert len(source) == stats["test"] and source.lost == {}
    read = {}
    for path in source.files.names:
        with tarfile.open(path) as archive:
            read |= {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    for number in range(len(source)):
        shard, row = source.place(number)
        key = source.key(shard, row)
        assert read[f"{key}.jpg"] == source.image(number)
        assert read[f"{key}.txt"] == source.read(shard, row, "txt")
    assert np.all(source.counts > 0)


def test_folders_that_change_places_are_other_shards(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "0.tar", [sample(0)])
    one, two = (Shards(f"{tmp_path}/{{{names}}}/0.tar") for names in ("a,b", "b,a"))
    assert one.fingerprint != two.fingerprint


def test_a_member_that_no_honest_sample_has_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "a.tar", [sample(0)])
    monkeypatch.setitem(module.LARGEST, "image", 100)
    source = Shards(str(tmp_path))
    with pytest.raises(ValueError, match="^image too large$"):
        source.read(0, 0, "image")
    assert source.read(0, 0, "txt")
