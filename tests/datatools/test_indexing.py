"""`clipkit data index`: the counts it tells, and what verification leaves out."""

from pathlib import Path

import pytest

from clipkit.datatools import indexing
from clipkit.datatools.indexing import index_all
from clipkit.errors import StorageError, UserError
from clipkit.shards import Shards
from clipkit.shards.index import facts, index_places, read
from clipkit.shards.names import CATALOG
from tests.samples import encoded, sample, shape, write_shard
from tests.shards.flaky_server import FlakyServer

CUT = encoded(shape(1)[0], quality=95)[:-300]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Two shards of five: one picture that is none, one that is cut short."""
    folder = tmp_path / "set"
    folder.mkdir()
    bad = {1: {"jpg": b"<html>"}, 7: {"jpg": CUT}}
    for i in range(2):
        write_shard(folder / f"{i}.tar", [sample(n, **bad.get(n, {})) for n in range(5 * i, 5 * i + 5)])
    return folder


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("verify", "left_out"),
    [("none", {}), ("header", {"not a picture": 1}), ("decode", {"broken picture": 1, "not a picture": 1})],
)
def test_verification_leaves_out_what_it_looks_at(damaged: Path, verify: str, left_out: dict, workers: int) -> None:
    told = index_all(str(damaged), verify=verify, workers=workers)  # type: ignore[arg-type]
    size = sum(path.stat().st_size for path in damaged.glob("*.tar"))
    assert told == {"shards": 2, "samples": 10 - len(left_out), "bytes": size, "left_out": left_out}
    source = Shards(str(damaged))
    assert len(source) == told["samples"] and source.lost == left_out
    keys = {source.key(*source.place(i)) for i in range(len(source))}
    assert keys == {f"{n:05d}" for n in range(10)} - {f"{(1, 7)[i]:05d}" for i in range(len(left_out))}


def test_a_deeper_look_follows_a_shallow_one_and_none_is_taken_twice(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_all(str(damaged), verify="header", workers=1)
    assert index_all(str(damaged), verify="decode", workers=1)["left_out"] == {"broken picture": 1, "not a picture": 1}
    kept = read(index_places(damaged / "0.tar")[0])
    assert kept is not None and kept.about["verified"] == "decode"
    assert kept._table.column("width").to_pylist() == [48] * 4 and kept._table.column("height").to_pylist() == [40] * 4
    monkeypatch.setattr(indexing._Task, "_verify", None)
    assert index_all(str(damaged), verify="header", workers=1)["samples"] == 8
    assert index_all(str(damaged), workers=1)["samples"] == 8


def test_a_folder_of_indexes_stands_for_the_shards(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "made" / "index"
    monkeypatch.chdir(tmp_path)
    told = index_all("set", str(out), "decode", 1)
    monkeypatch.chdir(out)
    assert (out / CATALOG).is_file() and not list(damaged.glob("*.arrow"))
    source = Shards(str(out))
    assert len(source) == told["samples"] == 8 and source.names == ["0.tar", "1.tar"]
    assert source.fingerprint != Shards(str(damaged)).fingerprint, "which has not been verified"


def test_remote_shards_are_indexed_through_the_cache(damaged: Path, tmp_path: Path) -> None:
    files = {f"/{path.name}": path.read_bytes() for path in damaged.glob("*.tar")}
    with FlakyServer(files) as server:
        told = index_all(f"{server.url}/{{0..1}}.tar", str(tmp_path / "index"), "header", 1)
        assert told["samples"] == 9 and told["left_out"] == {"not a picture": 1}
        source = Shards(str(tmp_path / "index"))
        assert len(source) == 9 and source.image(0) == sample(0)["jpg"]
    assert all(about["verified"] == "header" for path in (tmp_path / "index").glob("*.arrow") if (about := facts(path)))


def test_what_cannot_be_done_is_said(damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^--verify: one of none, header, decode is needed, got 'all'$"):
        index_all(str(damaged), verify="all")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds shards; give a folder of its own"):
        index_all(str(damaged), str(damaged))
    with pytest.raises(UserError, match="no such file or folder"):
        index_all(str(tmp_path / "nothing"))
    monkeypatch.setattr(indexing, "write", lambda table, path: False)
    with pytest.raises(StorageError, match=r"0.tar: its index could not be written; free some space"):
        index_all(str(damaged), verify="header", workers=1)


def test_an_index_verified_further_wins_over_one_whose_folder_cannot_be_written(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_all(str(damaged), workers=1)
    real = indexing.write
    monkeypatch.setattr(indexing, "write", lambda table, path: path.parent != damaged and real(table, path))
    assert index_all(str(damaged), verify="decode", workers=1)["samples"] == 8
    assert len(Shards(str(damaged))) == 8


def test_a_remote_shard_that_was_replaced_is_indexed_again(damaged: Path, tmp_path: Path) -> None:
    files = {f"/{path.name}": path.read_bytes() for path in damaged.glob("*.tar")}
    with FlakyServer(files) as server:
        url = f"{server.url}/{{0..1}}.tar"
        assert index_all(url, workers=1)["samples"] == 10
        files["/0.tar"] = write_shard(tmp_path / "new.tar", map(sample, range(7))).read_bytes()
        assert index_all(url, workers=1)["samples"] == 12
        assert Shards(url).read(0, 6, "image") == sample(6)["jpg"]
        with pytest.raises(UserError, match="--verify of remote shards needs --out FOLDER"):
            index_all(url, verify="header")
