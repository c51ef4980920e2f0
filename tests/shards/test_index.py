"""The kept index of a shard: equal to a scan, made once, and never trusted where it is damaged or lies."""

import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.shards import Shards
from clipkit.shards import index as module
from clipkit.shards.index import Kept, cache_place, facts, index, index_places, known, read, to_table, write
from clipkit.shards.tar import MEMBERS, Index, scan
from tests.samples import Trap, sample, write_shard, write_tar

NAME = "x.tar.index.arrow"


class Count:
    """Counts the calls of `scan`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        monkeypatch.setattr(module, "scan", self)

    def __call__(self, path: Path) -> Index:
        self.calls += 1
        return scan(path)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    yield Count(monkeypatch)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard with a broken second half, so that its index has losses to keep."""
    path = write_shard(tmp_path / "x.tar", map(sample, range(4)))
    os.truncate(path, path.stat().st_size // 2)
    return path


def rows_of(kept: Kept) -> list[tuple[str, list[tuple[int, int]]]]:
    """Key, and offset and size of each member, of every row."""
    spans = [[(int(at[i]), int(size[i])) for at, size in kept.spans.values()] for i in range(len(kept))]
    return [(kept.key(i), places) for i, places in enumerate(spans)]


def same(one: Kept, two: Kept) -> bool:
    return rows_of(one) == rows_of(two) and one.about == two.about


# Equal to a scan


def equals_scan(kept: Kept, path: Path) -> bool:
    made = scan(path)
    about = (kept.about["lost"], kept.about["suffixes"], kept.about["bytes"])
    wanted = [
        (key.decode(), [tuple(place) for place in row])
        for key, row in zip(made.keys.tolist(), made.places.tolist(), strict=True)
    ]
    return about == (made.lost, made.suffixes, path.stat().st_size) and rows_of(kept) == wanted


def test_an_index_is_made_once_and_equals_a_scan(shard: Path, scans: Count) -> None:
    first, second = index(shard), index(shard)
    assert scans.calls == 1 and same(first, second) and first.about["lost"]
    assert equals_scan(first, shard) and list(first.spans) == list(MEMBERS)
    assert shard.with_name(NAME).is_file() and known(shard) == index(shard).about


@pytest.mark.parametrize(
    "members", [[], [("0.txt", b"c")], [("0.jpg", b"p")], [("ä b/ü.jpg", b"p"), ("ä b/ü.txt", b"c")]]
)
def test_shards_of_none_and_one_sample_have_an_index(tmp_path: Path, members: list[tuple[str, bytes]]) -> None:
    path = write_tar(tmp_path / "x.tar", members)
    assert equals_scan(index(path), path) and equals_scan(index(path), path)


GROUPS = ((("image",),), (("image",), ("txt",)), (("image",), ("txt", "json")), (("json",), ("cls", "txt")), ())


@given(
    chosen=st.lists(st.lists(st.sampled_from(("jpg", "txt", "json", "cls", "-txt", "-json")), unique=True), max_size=12)
)
@settings(max_examples=80)
def test_counts_and_rows_of_alternatives_equal_counting(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[list[str]]
) -> None:
    members = [  # a minus is an empty member
        (f"{i}.{suffix.strip('-')}", b"" if suffix[0] == "-" else b"x" * (i + 1))
        for i, suffixes in enumerate(chosen)
        for suffix in suffixes
        if suffix[0] != "-" or suffix[1:] not in suffixes
    ]
    path = write_tar(tmp_path_factory.mktemp("groups") / "x.tar", members)
    kept, made = index(path), scan(path)
    for wanted in GROUPS:
        rows = [
            i
            for i, row in enumerate(made.places.tolist())
            if all(any(row[MEMBERS.index(name)][1] > 0 for name in group) for group in wanted)
        ]
        assert kept.rows(wanted).tolist() == rows and kept.count(wanted) == len(rows)
    assert sum(kept.about["has"].values()) == len(kept) == len(made)


# When and where it is made


@pytest.mark.parametrize("change", ["time", "size", "version"])
def test_an_index_is_made_anew_when_the_shard_or_the_version_changes(
    shard: Path, scans: Count, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    index(shard)
    facts = shard.stat()
    os.truncate(shard, facts.st_size - (512 if change == "size" else 0))
    os.utime(shard, ns=(facts.st_atime_ns, facts.st_mtime_ns + (1 if change == "time" else 0)))
    if change == "version":
        monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert known(shard) is None
    assert equals_scan(index(shard), shard) and scans.calls == 2 and known(shard) == index(shard).about


def test_a_copy_is_known_by_its_name_and_not_by_its_time(shard: Path, scans: Count, tmp_path: Path) -> None:
    place, url = tmp_path / "far.index.arrow", "https://far/x.tar"
    first = index(shard, place, url)
    os.utime(shard, ns=(0, 0))
    assert same(index(shard, place, url), first) and scans.calls == 1
    assert not shard.with_name(NAME).exists() and known(shard) is None
    index(shard, place, "https://far/y.tar")
    assert scans.calls == 2


def test_where_the_folder_cannot_be_written_the_cache_keeps_the_index(shard: Path, scans: Count, cache: Path) -> None:
    shard.with_name(NAME).mkdir()  # stands in for a read-only folder, also where root runs the test
    first, second = index(shard), index(shard)
    assert scans.calls == 1 and same(first, second) and known(shard) == index(shard).about
    assert [path.name.split("-", 1)[1] for path in (cache / "clipkit" / "index").iterdir()] == [NAME]


def test_where_nothing_can_be_written_a_shard_is_still_read(shard: Path, scans: Count, cache: Path) -> None:
    shard.with_name(NAME).mkdir()
    cache.write_text("not a folder")
    assert same(index(shard), index(shard)) and scans.calls == 2
    assert equals_scan(index(shard), shard)
    assert sorted(path.name for path in shard.parent.iterdir()) == ["cache", "x.tar", NAME]


def test_shards_of_the_same_name_have_places_of_their_own(tmp_path: Path) -> None:
    places = {index_places(tmp_path / folder / "x.tar")[1] for folder in ("a", "b")}
    assert len(places) == 2 and cache_place("s3://a/x.tar") not in places


# Damage and lies


def test_a_damaged_or_hostile_index_is_replaced_and_never_unpickled(shard: Path, scans: Count, tmp_path: Path) -> None:
    good = index(shard)
    kept, trap = shard.with_name(NAME), np.array([Trap(tmp_path / "trapped")], object)
    whole = kept.read_bytes()
    np.savez(tmp_path / "hostile.npz", about=trap, places=trap, keys=trap)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    contents = [b"", b"j", b"junk", b"\0" * 4096, whole[:-50], whole[: len(whole) // 2], whole[4:], bytes(flipped)]
    contents += [(tmp_path / "hostile.npz").read_bytes(), pickle.dumps(trap), *unpickled(tmp_path)]
    for calls, content in zip(itertools.count(2), contents, strict=False):
        kept.unlink()  # a file that is cut while it is mapped ends a process: what writes indexes never does that
        kept.write_bytes(content)
        assert same(index(shard), good)
        assert scans.calls == calls and kept.read_bytes() == whole
    assert not (tmp_path / "trapped").exists()


def sealed(data: bytes) -> bytes:
    """What claims to be whole."""
    return data + b"{}" + struct.pack("<III", 2, zlib.crc32(b"{}"), zlib.crc32(data))


def unpickled(folder: Path) -> list[bytes]:
    """Arrow streams whose extension type is a pickled object, as older readers of Arrow's unpickle by themselves."""
    trap = pickle.dumps(Trap(folder / "trapped"))
    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": trap}
    schema = pa.schema([pa.field("key", pa.binary(), metadata=marks)], {"clipkit": "{}"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table({"key": pa.array([b"0"])}, schema=schema))
    return [sealed(sink.getvalue().to_pybytes())]


def lying(kept: Kept, path: Path, about: dict[str, Any], columns: dict[str, Any]) -> Kept | None:
    """What is read of an index that says other things than it should."""
    table = kept._table
    for name, values in columns.items():
        table = table.drop_columns([name])
        table = table if values is None else table.append_column(name, values)
    assert write(table.replace_schema_metadata({"clipkit": json.dumps({**kept.about, **about})}), path)
    return read(path)


@pytest.mark.parametrize(
    "about",
    [
        {"stamp": "4 0 0"}, {"stamp": None}, {"bytes": 1 << 60}, {"bytes": -1}, {"bytes": "9"}, {"lost": {"x": "1"}},
        {"lost": None}, {"lost": {"x": -1}}, {"suffixes": 3}, {"suffixes": [3]}, {"has": {"image": 1}}, {"has": {}},
        {"has": {"image": -1, "": 3}}, {"has": [2]}, {"verified": 1},
    ],
)  # fmt: skip
def test_an_index_that_says_impossible_things_of_its_shard_is_not_believed(
    shard: Path, tmp_path: Path, about: dict[str, Any]
) -> None:
    assert lying(index(shard), tmp_path / "lie", {}, {}) is not None
    assert lying(index(shard), tmp_path / "lie", about, {}) is None
    told = facts(tmp_path / "lie")
    assert told is None or set(about) == {"has"}, "of counts that the rows deny the facts alone know nothing"


@pytest.mark.parametrize(
    "columns",
    [
        {"key": None}, {"json_at": None}, {"cls_bytes": None},
        {"key": ["0", "1"]}, {"image_at": pa.array([0, 1], pa.int32())}, {"image_at": [1.5, 2.0]},
        {"image_at": pa.array([0, None], pa.int64())}, {"image_bytes": [1 << 62, 1]}, {"image_bytes": [-2, 1]},
        {"image_at": [1 << 62, 0]}, {"image_at": [-(1 << 63), 0]}, {"txt_bytes": [1 << 62, 1]},
        {"cls_at": ["a", "b"]},
    ],
)  # fmt: skip
def test_an_index_with_other_columns_or_places_outside_its_shard_is_not_believed(
    shard: Path, tmp_path: Path, columns: dict[str, Any]
) -> None:
    kept = index(shard)
    assert len(kept) == 2
    arrays = {
        name: values if values is None or isinstance(values, pa.Array) else pa.array(values)
        for name, values in columns.items()
    }
    assert lying(kept, tmp_path / "lie", {}, arrays) is None


def test_metadata_that_is_no_facts_is_not_believed(shard: Path, tmp_path: Path) -> None:
    table, place = index(shard)._table, tmp_path / "lie"
    for text in ("", "[]", "null", "3", "{", "[" * 100_000, '{"stamp": 3}'):
        write(table.replace_schema_metadata({"clipkit": text}), place)
        assert read(place) is None and facts(place) is None
    write(table.replace_schema_metadata(None), place)
    assert read(place) is None and read(tmp_path / "nothing") is None
    assert facts(place) is None and facts(tmp_path / "nothing") is None and facts(tmp_path) is None


def test_lies_about_a_whole_shard_end_no_count(shard: Path) -> None:
    kept = index(shard)
    for about in ({}, {"has": {"image": "3"}}, {"lost": {"x": None}}, {"has": 3}, {"bytes": None}, {"suffixes": None}):
        told = json.dumps({**kept.about, **about} if about else []).encode()
        data = b"nothing"
        tail = struct.pack("<III", len(told), zlib.crc32(told), zlib.crc32(data))
        shard.with_name(NAME).unlink()
        shard.with_name(NAME).write_bytes(data + told + tail)
        source = Shards(str(shard))
        assert len(source) == 2 and source.image(1) == sample(1)["jpg"], about


MUTATE = """
import faulthandler, random, sys
from pathlib import Path
from clipkit.shards.index import facts, read
faulthandler.enable()
place, whole = Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()
from tests.shards.test_index import rows_of, sealed
dice, data = random.Random(int(sys.argv[2])), whole[:-12 - int.from_bytes(whole[-12:-8], "little")]
plain, truth = range(0, len(whole), 3), facts(place)
def mutated():
    for at in plain:
        yield whole[:at] + bytes([whole[at] ^ 1 << dice.randrange(8)]) + whole[at + 1:], False
    for at in range(0, len(whole), 40):
        yield whole[:at], False
    for _ in range(1500):
        at, n = dice.randrange(len(data)), dice.choice((1, 4, 8, 33))
        new = dice.choice((dice.randbytes(n), bytes(n), b"\\xff" * n, b"\\xff\\xff\\xff\\x7f"))
        yield sealed((data[:at] + new + data[at + len(new):])[:dice.choice((len(data), len(data), at))]), True
believed = 0
for content, lies in mutated():
    place.unlink()
    place.write_bytes(content)
    kept, told = read(place), facts(place)
    assert lies or told in (None, truth), "plain damage of the facts was not seen"
    if kept is None:
        continue
    assert lies, "plain damage was not seen"
    believed += 1
    rows_of(kept), kept.rows((("image",), ("txt", "json"))), kept.count((("image",), ("txt", "json")))
print(believed)
"""


@pytest.mark.parametrize("seed", [0])
def test_no_mutated_index_ends_the_process_and_no_plain_damage_is_believed(shard: Path, seed: int) -> None:
    """Flips and cuts of the file, and lies whose checksum is right, in a process of its own."""
    index(shard)
    command = [sys.executable, "-c", MUTATE, str(shard.with_name(NAME)), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100, "some lies are harmless, such as another key"


def test_a_table_without_the_bad_rows_counts_them(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "x.tar", map(sample, range(6)))
    kept = index(path)
    sides = {"width": np.arange(6, dtype=np.int32), "height": np.arange(6, dtype=np.int32) + 10}
    table = kept.verified({1: "too small", 4: "not a picture", 5: "too small"}, "header", sides)
    place = index_places(path)[0]
    assert write(table, place)
    left = index(path)
    assert rows_of(left) == [rows_of(kept)[i] for i in (0, 2, 3)]
    assert left.about["lost"] == {"too small": 2, "not a picture": 1} and left.about["verified"] == "header"
    assert left.count((("image",), ("txt",))) == 3
    again = left.verified({}, "decode", {"width": np.zeros(3, np.int32)})
    assert again.column("width").to_pylist() == [0, 0, 0] and again.column("height").to_pylist() == [10, 12, 13]


def test_the_table_of_a_scan_is_what_is_read_back(shard: Path, tmp_path: Path) -> None:
    table = to_table(scan(shard), shard.stat().st_size, f"{module.VERSION} {shard.stat().st_size} x")
    assert write(table, tmp_path / "deep" / "er" / "t")
    kept = read(tmp_path / "deep" / "er" / "t")
    assert kept is not None and kept._table.equals(table, check_metadata=True)
    assert not write(table, shard / "below a file")
