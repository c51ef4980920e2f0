"""Shards as one sequence: which files a pattern names, which samples count, and what is read of them."""

import gc
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import UserError
from clipkit.shards import Shards, caption_of, members_for, resolve
from tests.conftest import COUNTS
from tests.samples import CLIPART, Trap, needs_clipart, sample, write_shard, write_tar

PAIR = ("image", "txt")


# Patterns


def test_a_folder_a_glob_and_braces_name_the_same_shards(shards: Path) -> None:
    wanted = [shards / f"{i:03d}.tar" for i in range(4)]
    for pattern in (f"{shards}", f"{shards}/*.tar", f"{shards}/{{000..003}}.tar", f"{shards}/{{00[01],002,00[3]}}.tar"):
        assert resolve(pattern) == wanted
    assert resolve(f"{shards}/002.tar") == wanted[2:3]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("empty", "empty: no .tar shards in this folder; give a folder, a glob or {000..012} pattern"),
        ("{000..009}.tar", "{000..009}.tar: 6 of 10 shards are not there, the first is 004.tar"),
        ("nope.tar", "nope.tar: 1 of 1 shards are not there, the first is nope.tar"),
        ("x*.tar", "x*.tar: no shard matches; give a folder, a glob or a {000..012} pattern"),
        ("{000..3.tar", "{000..3.tar: Unbalanced braces: '{000..3.tar'; write a brace pattern as {000..012}"),
    ],
)
def test_a_pattern_that_names_nothing_says_so(
    shards: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
) -> None:
    monkeypatch.chdir(shards)
    (shards / "empty").mkdir(exist_ok=True)
    with pytest.raises(UserError) as error:
        resolve(pattern)
    assert str(error.value) == message


# Samples


def test_every_sample_is_read_back_as_it_was_written(shards: Path) -> None:
    source = Shards(str(shards), PAIR)
    assert source.counts.tolist() == list(COUNTS) and len(source) == sum(COUNTS) and source.lost == {}
    for number in range(len(source)):
        wanted, (shard, row) = sample(number), source.place(number)
        assert source.key(shard, row) == wanted["__key__"]
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
    assert source.lost == {"no txt": 3, "no image": 2}
    assert len(Shards(str(tmp_path))) == 4


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
        (("image", "cls"), "{}: no sample has image and cls; the members that are there: jpg, png.seg; "),
    ],
)
def test_where_no_sample_is_left_the_members_that_are_there_are_named(
    tmp_path: Path, wanted: tuple[str, str], message: str
) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", b"p"), ("0.png.seg", b"s")])
    with pytest.raises(UserError) as error:
        Shards(str(tmp_path), wanted)
    assert str(error.value) == message.format(tmp_path) + "data.caption chooses the caption: txt, or json:KEY"


def test_an_empty_shard_says_that_it_holds_no_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match="the members that are there: none;"):
        Shards(str(tmp_path))


def test_the_fingerprint_changes_with_names_and_counts_alone(tmp_path: Path) -> None:
    def fingerprint(*shards: tuple[str, int]) -> str:
        folder = tmp_path / "-".join(f"{name}{count}" for name, count in shards)
        folder.mkdir(exist_ok=True)
        for name, count in shards:
            write_shard(folder / name, map(sample, range(count)))
        return Shards(str(folder)).fingerprint

    base = fingerprint(("a.tar", 2), ("b.tar", 1))
    assert fingerprint(("a.tar", 2), ("b.tar", 1)) == base
    assert len({base, fingerprint(("a.tar", 1), ("b.tar", 2)), fingerprint(("a.tar", 2), ("c.tar", 1))}) == 3


def test_a_record_tells_where_the_picture_lies(shards: Path) -> None:
    source = Shards(str(shards))
    record = source.record(8, "json:texts")
    with open(record["shard"], "rb") as file:
        file.seek(record["offset"])
        assert file.read(record["size"]) == sample(8)["jpg"]
    assert record["key"] == "00008" and record["caption"] == json.loads(sample(8)["json"])["texts"][0]


@pytest.mark.parametrize("members", [{"txt": b" \n"}, {"txt": b"\xff\xfe"}, {"txt": b""}])
def test_a_record_without_a_usable_caption_has_an_empty_one(tmp_path: Path, members: dict[str, bytes]) -> None:
    write_shard(tmp_path / "a.tar", [sample(0, **members)])
    assert Shards(str(tmp_path)).record(0)["caption"] == ""


# Captions


@pytest.mark.parametrize("caption", ["", "TXT", "json", "json:", "caption"])
def test_a_caption_setting_is_txt_or_a_json_key(caption: str) -> None:
    with pytest.raises(UserError) as error:
        members_for(caption)
    assert str(error.value) == f"caption: 'txt' or 'json:KEY' is needed, got '{caption}'"
    assert members_for("txt") == ("image", "txt") and members_for("json:a") == ("image", "json")


def captions(folder: Path, members: dict[str, bytes], caption: str) -> list[str]:
    write_shard(folder / "a.tar", [sample(0, **members)])
    return caption_of(Shards(str(folder)), 0, 0, caption)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [('" a "', ["a"]), ('["a", " ", "b ", 3, null, [], ""]', ["a", "b"]), ('["\\ud83d\\ude00"]', ["😀"])],
)
def test_captions_come_stripped_from_a_text_or_a_list(tmp_path: Path, text: str, wanted: list[str]) -> None:
    assert captions(tmp_path, {"json": b'{"k": %s}' % text.encode()}, "json:k") == wanted


@pytest.mark.parametrize(
    ("members", "caption", "reason"),
    [
        ({"txt": b" \n\t"}, "txt", "empty caption"),
        ({"txt": "Käse".encode("latin-1")}, "txt", "'utf-8' codec"),
        ({"json": b'{"other": "x"}'}, "json:k", "empty caption"),
        ({"json": b'{"k": null}'}, "json:k", "empty caption"),
        ({"json": b'{"k": []}'}, "json:k", "empty caption"),
        ({"json": b'{"k": 3}'}, "json:k", "empty caption"),
        ({"json": b'{"k": "\\ud83d"}'}, "json:k", "empty caption"),  # half a surrogate pair: no text
        ({"json": b'["k"]'}, "json:k", "empty caption"),
        ({"json": b"null"}, "json:k", "empty caption"),
        ({"json": b"{"}, "json:k", "broken json"),
        ({"json": b"[" * 100_000}, "json:k", "broken json"),
        ({"json": b'{"k": "\xff"}'}, "json:k", "broken json"),
    ],
)
def test_an_unusable_caption_is_a_value_error(
    tmp_path: Path, members: dict[str, bytes], caption: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        captions(tmp_path, members, caption)


# Files


def test_a_member_that_is_not_there_is_a_value_error_and_a_cut_file_an_os_error(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", map(sample, range(2)))
    source = Shards(str(tmp_path))
    assert source.span(0, 0, "cls") == (-1, -1)
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
    assert source.record(0)["caption"] and source.image(2) == sample(2)["jpg"]
    assert not (tmp_path / "trapped").exists()


@needs_clipart
def test_real_shards_hold_what_their_statistics_say_and_equal_tarfile(cache: Path) -> None:
    stats = json.loads((CLIPART / "stats.json").read_text())
    assert len(Shards(f"{CLIPART}/train-*.tar", PAIR)) == stats["train"]
    source = Shards(f"{CLIPART}/test-{{00000..00001}}.tar", PAIR)
    assert len(source) == stats["test"] and source.lost == {}
    read = {}
    for path in source.paths:
        with tarfile.open(path) as archive:
            read |= {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    for number in range(len(source)):
        shard, row = source.place(number)
        key = source.key(shard, row)
        assert read[f"{key}.jpg"] == source.image(number)
        assert read[f"{key}.txt"] == source.read(shard, row, "txt")
    assert np.all(source.counts > 0)
