"""Tars that are well made and odd, samples in parts, and files that are no tar at all."""

import bz2
import gzip
import io
import lzma
import pickle
import zipfile
from pathlib import Path

from tests.samples import Trap
from tests.shards.damage import Members, Recipe, good, tar
from tests.shards.damaged_tars import (
    KIND,
    KINDS,
    MAGIC,
    RUBBLE,
    at,
    bad,
    between,
    entry,
    header,
    kind,
    padded,
    put,
    whole,
)


def foreign(name: str, data: bytes) -> None:
    """Add a file that is no tar."""
    KINDS[f"is_{name.replace(' ', '_').replace('-', '_')}"] = Recipe(lambda: data, (), {f"{name}, not tar": 1}, {})


# Members that are no plain files, and odd names


def _other(kind: bytes, link: str = "", size: int = 0) -> bytes:
    (_, _), (_, text) = good("bad")
    return between(entry("bad.jpg", kind, link, size), entry("bad.txt", b"0", size=len(text)), padded(text))


@kind("g0", "g1", not_a_plain_file=1, no_image=1)
def symlink() -> bytes:
    return _other(b"2", "/etc/passwd")


@kind("g0", "g1", not_a_plain_file=1, no_image=1)
def hard_link() -> bytes:
    return _other(b"1", "g0.jpg")


@kind("g0", "g1", not_a_plain_file=1, no_image=1)
def hard_link_with_a_size() -> bytes:
    return _other(b"1", "g0.jpg", 1000)


@kind("g0", "g1", not_a_plain_file=1, no_image=1)
def device() -> bytes:
    return _other(b"3")


@kind("g0", "g1", not_a_plain_file=1, no_image=1)
def pipe() -> bytes:
    return _other(b"6")


@kind("g0", "g1", no_image=1)
def folder_with_the_name_of_a_picture() -> bytes:
    return _other(b"5")


@kind("g0", "g2", "g3", not_a_plain_file=1, no_image=1)
def sparse() -> bytes:
    return header(whole(), "g1.jpg", KIND, b"S")


@kind("g0", "g2", "g3", not_a_plain_file=1, no_image=1)
def unknown_kind() -> bytes:
    return header(whole(), "g1.jpg", KIND, b"Z")


@kind("g0", "g1")
def folders_between() -> bytes:
    return between(entry("a/", b"5"), entry("b.jpg/", b"5"))


@kind("g0", "../../../../tmp/up", "/tmp/root", "g1")
def names_that_lead_out() -> bytes:
    return bad(*good("../../../../tmp/up", "/tmp/root"))


@kind("g0", "B\ufffdr", "B\ufffdr", "g1")
def names_not_utf8() -> bytes:
    data = bad(*good("Bar", "Bor"))
    for name, letter in (("Bar", b"\xe4"), ("Bor", b"\xf6")):
        for suffix in ("jpg", "txt"):
            data = header(data, f"{name}.{suffix}", 1, letter)
    return data


@kind("g0", "bad", "g1")
def sums_of_signed_bytes() -> bytes:
    data = bad(*good("bad"))
    for suffix in ("jpg", "txt"):
        begin = at(data, f"bad.{suffix}")
        block = put(put(data[begin : begin + 512], 300, b"\xfc" * 9), 148, b" " * 8)
        data = put(data, begin, put(block, 148, b"%06o\0 " % (sum(block) - 256 * 9)))
    return data


@kind("g0", "bad", "g1")
def no_magic() -> bytes:
    data = bad(*good("bad"))
    for name in ("g0", "bad", "g1"):
        for suffix in ("jpg", "txt"):
            data = header(data, f"{name}.{suffix}", MAGIC, bytes(8))
    return data


@kind("g0", "bad", "g1")
def upper_case_suffixes() -> bytes:
    return bad(*((name.replace("jpg", "JPG").replace("txt", "Txt"), data) for name, data in good("bad")))


@kind("g0", "g1", no_image=1)
def dots_in_a_key() -> bytes:
    return bad(*good("photo.2021"))  # the key ends at the first dot, as webdataset has it


@kind("g0", "g1")
def names_without_suffix() -> bytes:
    return bad(("readme", b"x"), (".hidden", b"x"), ("a/._0.jpg", b"x"))


# Samples in parts


def _samples(*names: str) -> bytes:
    """Members of these names, each with a picture or a text of its own."""
    members: Members = []
    for number, name in enumerate(names):
        members.append((name, good(str(number))[1 if name.endswith("txt") else 0][1]))
    return tar(members)


@kind("a", "a")
def twice_in_a_row() -> bytes:
    return _samples("a.jpg", "a.txt", "a.jpg", "a.txt")


@kind("a", "b", "a")
def twice() -> bytes:
    return _samples("a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt")


@kind("a", "b", duplicate_key=1)
def caption_again_at_the_end() -> bytes:
    return _samples("a.jpg", "a.txt", "b.jpg", "b.txt", "a.txt")


@kind("a", no_txt=1)
def picture_again_in_a_row() -> bytes:
    return _samples("a.jpg", "a.jpg", "a.txt")


@kind("b", duplicate_key=1, no_txt=2)
def parts_that_may_belong_to_either() -> bytes:
    return _samples("a.jpg", "b.jpg", "a.txt", "b.txt", "a.jpg")


@kind("b", "a", duplicate_key=1)
def caption_of_a_lost_picture_is_given_to_no_other() -> bytes:
    return _samples("a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt")


@kind("a", "b")
def caption_before_picture() -> bytes:
    return _samples("a.txt", "a.jpg", "b.txt", "b.jpg")


@kind("a", "b", "c")
def pictures_before_captions() -> bytes:
    return _samples("a.jpg", "b.jpg", "c.jpg", "a.txt", "b.txt", "c.txt")


@kind("b", "a", "c")
def any_order() -> bytes:
    return _samples("b.txt", "a.jpg", "c.jpg", "b.jpg", "c.txt", "a.txt")


@kind("a", "b", second_image=1)
def second_picture_of_another_suffix() -> bytes:
    return _samples("a.png", "a.jpg", "a.txt", "b.jpg", "b.txt")


@kind("g0", "g1", no_image=1)
def picture_missing() -> bytes:
    return bad(("bad.txt", b"alone"))


@kind("g0", "g1", empty_image=1)
def picture_of_no_bytes() -> bytes:
    return bad(("bad.jpg", b""), ("bad.txt", b"alone"))


@kind("g0", "bad", "g1")
def pickles_beside() -> bytes:
    trap = pickle.dumps(Trap(Path("unpickled")))
    return bad(*good("bad"), *((f"bad.{suffix}", trap) for suffix in ("pickle", "pkl", "pyd", "pth", "npy", "pt")))


@kind("g0", "g1", no_image=1)
def pickle_alone() -> bytes:
    return bad(("bad.pyd", pickle.dumps(Trap(Path("unpickled")))))


@kind("g0", "g1", no_image=1)
def tar_in_tar() -> bytes:
    return bad(("inner.tar", tar(good("h0", "h1"))))


# No tar at all


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in good("g0"):
            archive.writestr(name, data)
    return file.getvalue()


foreign("gzip", gzip.compress(whole(), mtime=0))
foreign("xz", lzma.compress(whole()))
foreign("bzip2", bz2.compress(whole()))
foreign("zip", _zip())
foreign("zstd", b"\x28\xb5\x2f\xfd" + RUBBLE * 3)
foreign("parquet", b"PAR1" + RUBBLE * 3 + b"PAR1")
foreign("web page", b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>" + b" " * 900)
foreign("json", b'{"error": "rate limit exceeded"}')
foreign(
    "git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 10737418240\n"
)
KINDS["is_storage_error"] = Recipe(
    lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', (), {"web page, not tar": 1}, {}
)
KINDS["is_rubble"] = Recipe(lambda: RUBBLE * 9, (), {"bad header": 1}, {})
