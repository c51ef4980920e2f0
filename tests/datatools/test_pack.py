"""What a pack leaves in its folder: the right samples, checked, split and shrunk, and every error told."""

import errno
import io
import json
import multiprocessing
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from clipkit.datatools import pack as pack_module
from clipkit.datatools.pack import pack
from clipkit.datatools.pack import plan as pack_plan
from clipkit.datatools.pack import pool as pack_pool
from clipkit.datatools.pack import write as pack_write
from clipkit.datatools.pack.plan import in_val
from clipkit.datatools.pack.write import shrunk
from clipkit.errors import BadData, StorageError, UserError
from clipkit.images import decode
from tests.datatools.packing import everything, folder, left_out, packed, pairs, picture, read
from tests.samples import encoded, shape


def table(top: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSON-lines table; its rows' `data` goes into the files that they call `image`."""
    top.mkdir()
    for row in rows:
        if (data := row.pop("data", None)) is not None:
            (top / row["image"]).write_bytes(data)
    (top / "t.jsonl").write_text("".join(json.dumps({"caption": "c", **row}) + "\n" for row in rows))
    return top / "t.jsonl"


# Order, keys, shards


def test_shards_are_of_equal_size_and_keys_count_on_over_them(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 11)
    packed(src, tmp_path / "out", per_shard=4)
    assert list(read(tmp_path / "out")) == [f"{i:09d}" for i in range(11)]
    assert [len(read(path)) for path in sorted((tmp_path / "out").glob("*.tar"))] == [3, 4, 4]
    for per_shard, shards in ((1, 11), (11, 1), (100, 1)):
        out = tmp_path / f"out{per_shard}"
        assert packed(src, out, per_shard=per_shard)["splits"]["all"]["shards"] == shards
        assert list(read(out).values()) == list(read(tmp_path / "out").values())


def test_the_order_follows_the_seed_and_none_keeps_the_sources(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 12)
    orders = []
    for name, seed in (("none", None), ("0", 0), ("1", 1)):
        packed(src, tmp_path / name, seed=seed)
        orders.append([about["path"] for _, _, about in read(tmp_path / name).values()])
    sorted_by_folder = sorted(orders[0], key=lambda path: (path.count("/"), path))
    assert orders[0] == sorted_by_folder and len({tuple(order) for order in orders}) == 3
    assert sorted(orders[1]) == sorted(orders[2]) == sorted(orders[0])


def test_many_record_batches_of_the_plan_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = folder(tmp_path / "src", 13)
    packed(src, tmp_path / "whole")
    monkeypatch.setattr(pack_plan, "BATCH", 3)
    packed(src, tmp_path / "pieces")
    assert everything(tmp_path / "whole") == everything(tmp_path / "pieces")


def test_three_workers_and_one_make_the_same_bytes(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 20)
    (src / "000.jpg").write_bytes(b"no picture")
    packed(src, tmp_path / "one", workers=1, val=0.3, size=20)
    packed(src, tmp_path / "three", workers=3, val=0.3, size=20)
    assert everything(tmp_path / "one") == everything(tmp_path / "three")
    for path in sorted(src.rglob("*.jpg"))[:12]:
        path.write_bytes(b"no picture")
    with pytest.raises(BadData, match="of 20 samples cannot be used"):
        packed(src, tmp_path / "bad", workers=2, per_shard=10)
    assert not list((tmp_path / "bad" / ".pack").glob(".*.tmp"))


# What is left out


def test_every_unusable_sample_is_left_out_and_counted_by_its_reason(tmp_path: Path) -> None:
    huge = encoded(Image.new("1", (8000, 8000)), "PNG")
    bad = {
        "missing.jpg": (None, "image file is missing"), "empty.jpg": (b"", "image file is empty"),
        "text.jpg": (b"hello, I am no picture", "not a picture"), "huge.png": (huge, "too many pixels"),
        "tiny.png": (encoded(Image.new("L", (1, 9)), "PNG"), "too small"),
        "long.png": (encoded(Image.new("L", (2, 999)), "PNG"), "too long for its width"),
        "tiff.jpg": (encoded(Image.new("L", (9, 9)), "TIFF"), "not a picture"),
        "n" * 300: (None, "image file is missing"),
    }  # fmt: skip
    rows = [{"image": f"{i}.jpg", "data": picture(i), "number": i} for i in range(9)]
    rows[4:4] = [{"image": name, "data": data} for name, (data, _) in bad.items()]
    src = table(tmp_path / "src", [*rows, {"image": "dir"}, {"image": "pipe"}, {"image": "0.jpg", "caption": " \n"}])
    (src.parent / "dir").mkdir()
    os.mkfifo(src.parent / "pipe")
    facts = packed(src, tmp_path / "out", max_bad=0.6)
    wanted = {f"t.jsonl line {5 + i}: {name}": reason for i, (name, (_, reason)) in enumerate(bad.items())}
    wanted |= {"t.jsonl line 18: dir": "image is not a file", "t.jsonl line 19: pipe": "image is not a file"}
    wanted["t.jsonl line 20: 0.jpg"] = "empty caption"
    assert dict(left_out(tmp_path / "out")) == wanted and facts["left_out"] == len(wanted) == 11
    assert facts["left_out_because"] == dict(sorted(Counter(wanted.values()).items()))
    assert sorted(about["number"] for _, _, about in read(tmp_path / "out").values()) == list(range(9))
    assert facts["samples"] == 9 and facts == json.loads((tmp_path / "out" / "pack.json").read_text())


def test_a_caption_file_that_is_empty_or_no_utf8_or_missing_leaves_its_image_out(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 6)
    (src / "000.txt").write_bytes(b" \n")
    (src / "003.txt").write_bytes("Käse".encode("latin-1"))
    (src / "a" / "001.txt").unlink()
    (src / "a" / "004.txt").write_bytes(b"x" * (1 << 20) + b"x")
    facts = packed(src, tmp_path / "out")
    reasons = ["caption file is too large", "caption is not UTF-8", "empty caption", "no caption file"]
    assert facts["left_out_because"] == dict.fromkeys(reasons, 1) and facts["samples"] == 2


def test_what_is_left_out_leaves_a_gap_in_the_keys(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 9)
    packed(src, tmp_path / "whole", seed=None)
    (src / "a" / "004.jpg").write_bytes(b"?")
    packed(src, tmp_path / "gap", seed=None)
    whole, gap = read(tmp_path / "whole"), read(tmp_path / "gap")
    assert gap == {key: value for key, value in whole.items() if key != "000000004"}


def test_a_truncated_image_is_found_by_decoding_alone(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 5)
    (src / "000.jpg").write_bytes(picture(0)[:-200])
    assert packed(src, tmp_path / "header")["left_out"] == 0
    assert packed(src, tmp_path / "decode", verify="decode")["left_out_because"] == {"broken picture": 1}
    assert packed(src, tmp_path / "size", size=1000)["left_out_because"] == {"broken picture": 1}


@pytest.mark.parametrize(("bad", "of", "stops"), [(9, 20, False), (10, 20, True), (10, 1000, False), (3, 3, True)])
def test_too_much_that_is_left_out_stops_the_pack(tmp_path: Path, bad: int, of: int, stops: bool) -> None:
    rows = [{"image": "good.jpg"}] * (of - bad) + [{"image": f"{i}.jpg"} for i in range(bad)]
    src = table(tmp_path / "src", rows)
    (src.parent / "good.jpg").write_bytes(picture(0))
    if not stops:
        assert packed(src, tmp_path / "out", per_shard=50)["left_out"] == bad
        return
    with pytest.raises(BadData) as error:
        packed(src, tmp_path / "out", seed=None, per_shard=50)
    assert str(error.value) == (
        f"{src}: {bad} of {of} samples cannot be used (image file is missing: {bad}), --max-bad 0.01 allows fewer; "
        f"the first is t.jsonl line {of - bad + 1}: 0.jpg: image file is missing; mend them, or raise --max-bad, "
        "and start again"
    )
    for i in range(bad):  # mended
        (src.parent / f"{i}.jpg").write_bytes(picture(i))
    assert packed(src, tmp_path / "out", seed=None, per_shard=50)["samples"] == of
    assert left_out(tmp_path / "out") == []


def test_a_source_of_bad_rows_leaves_nothing_and_a_raised_bound_goes_on(tmp_path: Path) -> None:
    src = table(tmp_path / "src", [{"image": "x.jpg", "data": picture(0), "caption": ""}] * 12)
    with (src.parent / "t.jsonl").open("a") as file:
        file.write('{"image": "x.jpg", "caption": "c"}\n')
    with pytest.raises(BadData) as error:
        packed(src, tmp_path / "out")
    assert "12 of 13 samples cannot be used (empty caption: 12)" in str(error.value)
    assert "; mend the source, or raise --max-bad, and start again" in str(error.value)
    assert not (tmp_path / "out").exists()
    assert packed(src, tmp_path / "out", max_bad=0.95)["samples"] == 1


# Shrinking


def test_only_what_is_larger_is_shrunk_and_the_rest_keeps_its_bytes(tmp_path: Path) -> None:
    sides = {"small.png": (30, 20), "wide.png": (200, 50), "high.jpg": (60, 90), "exact.jpg": (64, 40)}
    form = {".jpg": "JPEG", ".png": "PNG"}
    data = {name: encoded(shape(7, *size)[0], form[name[-4:]]) for name, size in sides.items()}
    src = table(tmp_path / "src", [{"image": name, "data": data} for name, data in data.items()])
    for mode, wanted in (
        ("shortest", {"small.png": None, "wide.png": (160, 40), "high.jpg": (40, 60), "exact.jpg": None}),
        ("longest", {"small.png": None, "wide.png": (40, 10), "high.jpg": (27, 40), "exact.jpg": (40, 25)}),
        ("none", dict.fromkeys(sides)),
    ):
        packed(src, tmp_path / mode, size=40, resize=mode)
        found = {about["image"]: image for image, _, about in read(tmp_path / mode).values()}
        for name, size in wanted.items():
            if size is None:
                assert found[name] == data[name]
                continue
            with Image.open(io.BytesIO(found[name])) as image:
                assert (image.format, image.size) == ("JPEG", size)
                with Image.open(io.BytesIO(data[name])) as whole:
                    plain = whole.convert("RGB").resize(size, Image.Resampling.LANCZOS)
                plain = Image.open(io.BytesIO(encoded(plain, quality=95)))
                assert np.abs(np.asarray(image, float) - np.asarray(plain, float)).mean() < 0.5


def test_sides_are_shrunk_in_proportion() -> None:
    assert shrunk(200, 100, 100, "shortest") is None and shrunk(200, 100, 50, "shortest") == (100, 50)
    assert shrunk(200, 100, 200, "longest") is None and shrunk(200, 100, 99, "longest") == (99, 50)
    assert shrunk(200, 100, 50, "none") is None and shrunk(200, 100, None, "longest") is None
    assert shrunk(500, 10, 3, "longest") == (3, 1)


def test_a_shrunk_image_keeps_orientation_and_profile_and_quality(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    image = shape(3, 400, 300)[0]
    rows = [{"image": "a.jpg", "data": encoded(image, exif=exif, icc_profile=b"profile")}]
    rows.append({"image": "b.png", "data": encoded(image, "PNG", exif=b"Exif\0\0rubble")})
    src = table(tmp_path / "src", rows)
    packed(src, tmp_path / "out", size=100, seed=None)
    packed(src, tmp_path / "poor", size=100, quality=20, seed=None)
    first, second = (image for image, _, _ in read(tmp_path / "out").values())
    with Image.open(io.BytesIO(first)) as made:
        assert dict(made.getexif()) == {0x0112: 6} and made.info["icc_profile"] == b"profile"
    assert decode(second).shape == (3, 100, 133)
    assert all(
        len(good[0]) > len(poor[0])
        for good, poor in zip(read(tmp_path / "out").values(), read(tmp_path / "poor").values(), strict=True)
    )


def test_members_are_named_by_what_an_image_is(tmp_path: Path) -> None:
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
    image = shape(1)[0]
    src = table(tmp_path / "src", [{"image": f"{kind}.dat", "data": encoded(image, kind)} for kind in kinds])
    packed(src, tmp_path / "out", seed=None, per_shard=9)
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        members = [(one.name, one.mtime, one.uname, one.gname) for one in tar]
    suffixes = [(i, suffix) for i, kind in enumerate(kinds.values()) for suffix in sorted((kind, "json", "txt"))]
    assert members == [(f"{i:09d}.{suffix}", 0, "clipkit", "clipkit") for i, suffix in suffixes]


# Train and val


def test_a_group_is_on_one_side_alone_and_stays_there(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.jpg", "data": picture(i), "who": i % 17, "n": i} for i in range(60)]
    src = table(tmp_path / "src", rows)
    facts = packed(src, tmp_path / "out", val=0.3, group="who")
    sides = {side: [about for _, _, about in read(tmp_path / "out" / side).values()] for side in ("train", "val")}
    groups = {side: {about["who"] for about in abouts} for side, abouts in sides.items()}
    assert not groups["train"] & groups["val"] and groups["train"] | groups["val"] == set(range(17))
    assert groups["val"] == {who for who in range(17) if in_val(str(who), 0.3)}
    assert sorted(about["n"] for abouts in sides.values() for about in abouts) == list(range(60))
    assert {side: one["samples"] for side, one in facts["splits"].items()} == {s: len(a) for s, a in sides.items()}
    keys = [*read(tmp_path / "out" / "train"), *read(tmp_path / "out" / "val")]
    assert keys == [f"{i:09d}" for i in range(60)]
    half = [{**row, "data": picture(row["n"])} for row in rows[::-2]]
    less = table(tmp_path / "less", half)
    packed(less, tmp_path / "out2", val=0.3, group="who", seed=5)
    for side in ("train", "val"):
        assert {about["who"] for _, _, about in read(tmp_path / "out2" / side).values()} <= groups[side]


def test_without_a_group_rows_of_one_image_stay_together(tmp_path: Path) -> None:
    rows = [{"image": f"{i % 20}.jpg", "data": picture(i % 20), "caption": f"number {i}"} for i in range(60)]
    packed(table(tmp_path / "src", rows), tmp_path / "out", val=0.4)
    sides = [read(tmp_path / "out" / side).values() for side in ("train", "val")]
    train, val = ({about["image"] for _, _, about in side} for side in sides)
    assert not train & val and len(train | val) == 20


def test_the_side_of_a_group_is_this_for_ever() -> None:
    assert [i for i in range(40) if in_val(str(i), 0.2)] == VAL
    shares = [sum(in_val(f"a/{i}", share) for i in range(4000)) / 4000 for share in (0.0, 0.05, 0.5)]
    assert shares[0] == 0 and abs(shares[1] - 0.05) < 0.02 and abs(shares[2] - 0.5) < 0.04


VAL = [4, 9, 11, 16, 17, 22, 28, 30]  # by sha1 of "0" to "39"


def test_a_side_without_samples_is_refused(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 2)
    with pytest.raises(UserError) as error:
        packed(src, tmp_path / "out", val=0.001)
    told = f"{src}: --val 0.001 leaves no sample for val (of 2, drawn by group); type another share, or none"
    assert str(error.value) == told and not (tmp_path / "out").exists()


# The folder it writes


def test_a_finished_pack_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = folder(tmp_path / "src", 6), tmp_path / "out"
    facts, before = packed(src, out), everything(out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / ".pack").mkdir()  # as if it had been killed while it cleaned up
    (out / ".pack" / "rest").touch()
    capsys.readouterr()
    assert packed(src, out, workers=3, max_bad=0.5) == facts
    assert capsys.readouterr().err == f"{out}: is packed already; nothing to do\n"
    assert everything(out) == before and times == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_other_settings_or_a_changed_source_are_refused(tmp_path: Path) -> None:
    src, out = folder(tmp_path / "src", 6), tmp_path / "out"
    packed(src, out)
    before = everything(out)
    with pytest.raises(UserError) as error:
        packed(src, out, per_shard=5, seed=None)
    assert str(error.value) == (
        f"{out}: was packed with per_shard=4, seed=0, now it is per_shard=5, seed=None; give another folder, or start "
        f"over: rm -r {out}"
    )
    (src / "new.jpg").write_bytes(picture(9))
    with pytest.raises(UserError) as error:
        packed(src, out)
    told = str(error.value)
    assert (
        told.startswith(f"{out}: was packed from 12 files of ") and "the source has changed since (13 files of" in told
    )
    assert told.endswith(f" bytes, other names or times); give another folder, or start over: rm -r {out}")
    assert everything(out) == before


def half(src: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, **options: Any) -> None:
    """A pack that fails with `error` when it makes its second shard."""
    write, made = pack_write.write_shard, []

    def second_fails(*args: Any) -> Any:
        made.append(args)
        if len(made) == 2:
            raise error
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pack_write, "write_shard", second_fails)
        packed(src, out, **options)


def test_a_full_disk_says_so_and_the_pack_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    src, out = folder(tmp_path / "src", 12), tmp_path / "out"
    packed(src, tmp_path / "straight")
    full = OSError(errno.ENOSPC, "No space left on device", str(out / "x"))
    with pytest.raises(StorageError) as error:
        half(src, out, monkeypatch, full)
    assert str(error.value) == (
        f"{out}/x: No space left on device; mend that or make room, and start again: finished shards are kept"
    )
    first = (out / "00000.tar").stat()
    with pytest.raises(UserError) as refused:
        packed(src, out, seed=3)
    assert str(refused.value) == (
        f"{out}: was begun with seed=0, now it is seed=3; give another folder, or start over: rm -r {out}"
    )
    capsys.readouterr()
    packed(src, out)
    assert capsys.readouterr().err.startswith(f"{out}: 1 of 3 shards are there; going on\n")
    assert (out / "00000.tar").stat().st_ino == first.st_ino and everything(out) == everything(tmp_path / "straight")


def test_a_shard_that_was_cut_or_removed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, out = folder(tmp_path / "src", 12), tmp_path / "out"
    packed(src, tmp_path / "straight")
    for harm in (lambda path: path.write_bytes(path.read_bytes()[:-512]), lambda path: path.unlink()):
        with pytest.raises(StorageError):
            half(src, out, monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
        harm(out / "00000.tar")
    packed(src, out)
    assert everything(out) == everything(tmp_path / "straight")


def test_a_source_that_does_not_answer_stops_the_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = folder(tmp_path / "src", 3)

    def fails(*args: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(StorageError, match="Input/output error; start again with the same command, to go on"):
        packed(src, tmp_path / "out")


def test_a_killed_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, out, wait = folder(tmp_path / "src", 40), tmp_path / "out", pack_pool.wait

    def kill_one(*args: Any) -> Any:
        multiprocessing.active_children()[0].kill()
        return wait(*args)

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(pack_pool, "wait", kill_one)
        packed(src, out, workers=2, per_shard=1)
    assert str(error.value) == (
        f"{out}: a worker process was killed, perhaps for want of memory; start again, with fewer --workers: "
        "finished shards are kept"
    )
    assert packed(src, out, per_shard=1)["samples"] == 40


def test_files_that_change_under_a_pack_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, out, summarise = folder(tmp_path / "src", 12), tmp_path / "out", pack_module.summarise

    def one_shard_less(*args: Any) -> Any:
        (out / "00001.tar").unlink()
        return summarise(*args)

    with monkeypatch.context() as patch, pytest.raises(StorageError) as error:
        patch.setattr(pack_module, "summarise", one_shard_less)
        packed(src, out)
    assert str(error.value) == f"{out}/00001.tar: went away while it was packed; start again"
    assert packed(src, out)["samples"] == 12
    with pytest.raises(StorageError) as error:
        pack_write.read_part(str(src / "000.txt"), 5, 900, 1 << 20, "image")
    told = f"{src}/000.txt: is shorter than when it was planned; start over with the whole file"
    assert str(error.value) == told


def test_a_folder_that_holds_other_things_is_left_alone(tmp_path: Path) -> None:
    src, out = folder(tmp_path / "src", 2), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    for place, told in (
        (out, "exists and is no pack; nothing was touched; give another folder"),
        (out / "mine.txt", "is a file; give a folder"),
    ):
        with pytest.raises(UserError) as error:
            packed(src, place)
        assert str(error.value) == f"{place}: {told}" and [p.name for p in out.iterdir()] == ["mine.txt"]
    (out / "pack.json").write_text("[]")
    with pytest.raises(UserError) as error:
        packed(src, out)
    assert str(error.value) == f"{out}/pack.json: is not what a pack writes; nothing was touched; give another folder"


def test_two_packs_into_one_folder_are_refused(tmp_path: Path) -> None:
    src, out = folder(tmp_path / "src", 2), tmp_path / "out"
    (out / ".pack").mkdir(parents=True)
    with FileLock(out / ".pack" / "lock"), pytest.raises(UserError) as error:
        packed(src, out)
    assert str(error.value) == f"{out}: another process is packing into it; wait, or give another folder"
    assert packed(src, out)["samples"] == 2


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"captions": "txts"}, "--captions must be 'txt' or 'name', got 'txts'"),
        ({"resize": "x"}, "--resize must be 'shortest' or 'longest' or 'none', got 'x'"),
        ({"verify": "x"}, "--verify must be 'header' or 'decode', got 'x'"),
        ({"size": 1}, "--size must be from 2 to 32768, got 1"),
        ({"quality": 101}, "--quality must be from 1 to 100, got 101"),
        ({"per_shard": 0}, "--per-shard must be from 1 to 2147483648, got 0"),
        ({"val": 1.0}, "--val must be from 0 to 0.999, got 1.0"),
        ({"seed": -1}, "--seed must be from 0 to 9223372036854775807, got -1"),
        ({"workers": -1}, "--workers must be from 0 to 1024, got -1"),
        ({"max_bad": 2}, "--max-bad must be from 0 to 1, got 2"),
    ],
)  # fmt: skip
def test_an_argument_out_of_range_is_refused(tmp_path: Path, option: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        packed(tmp_path, tmp_path / "out", **option)
    assert str(error.value) == f"pack: {told}"


def test_captions_are_counted_and_measured(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "0.jpg", "data": picture(0), "caption": text} for text in ("ab", ["abc", "a"], "é😀xyz")
    ]
    facts = pack(str(table(tmp_path / "src", rows)), tmp_path / "out", workers=0)
    wanted = {"several": 1, "captions": 4, "characters": 11, "shortest": 1, "longest": 5}
    assert facts["captions"] == wanted and facts["samples"] == 3 and pairs(tmp_path / "out")[0][0] == picture(0)
