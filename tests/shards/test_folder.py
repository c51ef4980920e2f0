"""Pictures that lie as files, the choice between them and shards, and bytes read by their place."""

import json
from pathlib import Path

import pytest

from clipkit.errors import StorageError, UserError
from clipkit.shards import Folder, Shards, open_source, read_span, record
from tests.samples import encoded, shape


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """b.JPG with a caption, a/c.png with one that is not UTF-8, d.webp without, and a file that is no picture."""
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    (folder / "b.JPG").write_bytes(encoded(shape(0)[0]))
    (folder / "b.txt").write_text(" ein Bär \n", encoding="utf-8")
    (folder / "a" / "c.png").write_bytes(encoded(shape(1)[0], "PNG"))
    (folder / "a" / "c.txt").write_bytes(b"caf\xe9")
    (folder / "d.webp").write_bytes(encoded(shape(2)[0], "WEBP"))
    return folder


def test_the_pictures_of_a_folder_come_sorted_with_their_captions(pictures: Path) -> None:
    source = open_source(str(pictures))
    assert isinstance(source, Folder) and len(source) == 3
    records = [record(source, i) for i in range(3)]
    assert [(one["key"], one["caption"]) for one in records] == [
        ("c", "caf\ufffd"),
        ("b", "ein Bär"),
        ("d", ""),
    ]
    for i, one in enumerate(records):
        assert source.image(i) == read_span(one["shard"], one["offset"], one["size"])


def test_a_source_is_shards_pictures_or_one_picture(pictures: Path, shards: Path) -> None:
    for name in (str(shards), f"{shards}/000.tar", f"{shards}/00*.tar", f"{shards}/{{000,001}}.tar"):
        assert isinstance(open_source(name), Shards)
    one = open_source(str(pictures / "b.JPG"))
    assert isinstance(one, Folder) and record(one, 0)["caption"] == "ein Bär"


def test_the_folder_of_an_index_is_its_shards(pictures: Path, shards: Path) -> None:
    line = {"name": str(shards / "002.tar"), "bytes": 1, "samples": 1}
    (pictures / "shards.jsonl").write_text(json.dumps(line))
    source = open_source(str(pictures))
    assert isinstance(source, Shards) and len(source) == 1 and record(source, 0)["key"] == "00019"


def test_a_source_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        open_source(f"{tmp_path}/nope")
    hint = "give a folder, a glob or a {000..012} pattern"
    assert str(error.value) == f"{tmp_path}/nope: no such file or folder; {hint}"
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path))
    wanted = "neither .tar shards nor pictures (jpg, jpeg, png, webp, bmp, gif) in this folder"
    assert str(error.value) == f"{tmp_path}: {wanted}"


def test_bytes_that_are_no_longer_there_are_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(StorageError, match=f"{path}: No such file or directory"):
        read_span(path, 0, 1)
    path.write_bytes(b"0123456789")
    assert read_span(path, 3, 4) == b"3456" and read_span(path, 10, 0) == b""
    with pytest.raises(StorageError, match=f"{path}: holds no 4 bytes at 7; it has changed since it was embedded"):
        read_span(path, 7, 4)
