"""Damaged, hostile and odd shards: each sample is read, or counted under the reason that its kind states."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit import images
from clipkit.errors import UserError
from clipkit.shards import Shards, caption_of, members_for
from clipkit.shards.tar import MEMBERS, scan
from clipkit.types import Preprocess
from tests.shards import damage
from tests.shards.damage import Kind, good

SHAPE = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = list(damage.recipes())


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return {kind.name: kind for kind in damage.corpus(tmp_path_factory.mktemp("corpus"))}


def test_the_corpus_holds_every_kind_once_and_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["damage", str(tmp_path)])
    damage.main()
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert [one["name"] for one in told] == NAMES and len(NAMES) >= 55
    assert {one["path"] for one in told} == {path.name for path in tmp_path.glob("*.tar")}
    assert capsys.readouterr().out.startswith(f"{len(NAMES)} kinds")


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_is_read_or_counted(
    kinds: dict[str, Kind], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a trap would make its folder
    kind = kinds[name]
    before = sorted(kind.path.parent.glob("**/*"))
    index = scan(kind.path)
    assert sorted(kind.path.parent.glob("**/*")) == before, "a scan writes nothing"
    wanted = members_for(kind.caption)
    members = MEMBERS.index(wanted[1][0])
    have = index.places[:, members, 1] > 0
    lost = Counter(index.lost) + Counter({f"no {wanted[1][0]}": int((~have).sum())})
    assert lost == kind.left_out
    readable, reasons = [], Counter()
    if have.any():
        source = Shards(str(kind.path), wanted)
        assert source.lost == kind.left_out and len(source) == have.sum()
        for row in range(len(source)):
            try:
                assert all(caption_of(source, 0, row, kind.caption))
                view = images.train_view(source.image(row), SHAPE, (0.9, 1.0), random.Random(row))
                assert view.shape == (3, 32, 32)
            except (ValueError, OSError) as error:
                assert 0 < len(str(error)) < 40
                reasons[str(error)] += 1
            else:
                readable.append(source.key(0, row))
    else:
        with pytest.raises(UserError) as error:
            Shards(str(kind.path), wanted)
        assert all(reason in str(error.value) for reason in kind.left_out if not reason.startswith("no "))
    assert tuple(readable) == kind.usable
    assert reasons == kind.unreadable
    assert not list(tmp_path.rglob("unpickled")) and not Path("/tmp/up.jpg").exists()


def test_every_reason_is_short_and_there_is_a_kind_for_each() -> None:
    reasons = {reason for one in damage.recipes().values() for reason in (*one.left_out, *one.unreadable)}
    assert max(map(len, reasons)) < 40
    assert {
        "bad header", "bad name", "bad size", "duplicate key", "empty file", "empty image", "gzip, not tar",
        "hole of zeros", "no image", "not a plain file", "second image", "truncated", "web page, not tar",
    } <= reasons  # fmt: skip


def test_what_a_broken_shard_says_names_the_reason(kinds: dict[str, Kind]) -> None:
    with pytest.raises(UserError, match=r"is_gzip\.tar: no sample has image and txt; .*left out: gzip, not tar: 1"):
        Shards(str(kinds["is_gzip"].path), members_for("txt"))


# What is found behind a place where bytes are missing or too many

KEYS = [f"s{i}" for i in range(8)]
WHOLE = damage.tar(good(*KEYS))
STARTS = [WHOLE.index(f"{key}.jpg".encode()) for key in KEYS]
ENDS = [*STARTS[1:], WHOLE.index(b"s7.txt") + 1024]


def pairs(path: Path, data: bytes) -> dict[str, tuple[bytes, bytes]]:
    """{key: (picture, caption)} of the samples that a scan finds."""
    path.write_bytes(data)
    index = scan(path)
    return {
        key.decode(): (data[at : at + size], data[text : text + length])
        for key, ((at, size), (text, length)) in zip(index.keys, index.places[:, :2].tolist(), strict=True)
    }


@settings(max_examples=100)
@given(place=st.integers(0, ENDS[-1] - 1), length=st.integers(1, 2000), missing=st.booleans())
def test_bytes_put_in_or_taken_out_cost_only_the_samples_they_touch(
    tmp_path_factory: pytest.TempPathFactory, place: int, length: int, missing: bool
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "x.tar"
    whole = pairs(path, WHOLE)
    end = min(place + length, ENDS[-1]) if missing else place
    found = pairs(path, WHOLE[:place] + (b"" if missing else b"rubble " * 300)[:length] + WHOLE[end:])
    for key, start, stop in zip(KEYS, STARTS, ENDS, strict=True):
        if stop <= place or start >= end:
            assert found.get(key) == whole[key], f"{key} lies outside of what changed"


def test_one_long_name_costs_no_room_for_the_others(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(damage.tar([("n" * 4000 + ".jpg", b"x"), *((f"{i}.jpg", b"x") for i in range(100))]))
    index = scan(path)
    assert len(index) == 101 and index.keys.nbytes <= 101 * 8
    path.write_bytes(damage.tar([("n" * 5000 + ".jpg", b"x")]))
    assert scan(path).lost == {"bad name": 1}


def test_of_many_suffixes_some_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(damage.tar((f"www.site{i}.org.jpg", b"x") for i in range(300)))
    index = scan(path)
    assert len(index.suffixes) == 100 and index.lost == {"no image": 1}
