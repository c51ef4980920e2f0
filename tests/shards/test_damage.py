"""Damaged, hostile and odd shards: each sample is read, or counted under the reason that its kind states."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from clipkit import images
from clipkit.errors import UserError
from clipkit.shards import Shards, caption_of, members_for
from clipkit.shards.tar import MEMBERS, scan
from clipkit.types import Preprocess
from tests.shards import damage
from tests.shards.damage import Kind

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
