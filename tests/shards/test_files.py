"""The shards of a set as files: indexes made by several processes, and the folder of an index in place of shards."""

import json
import os
import pickle
from pathlib import Path

import pytest

from clipkit.shards import Shards, files
from clipkit.shards.files import Files
from clipkit.shards.index import SUFFIX, Kept, cache_place, index, write
from clipkit.shards.names import CATALOG
from tests.samples import sample, write_shard, write_tar


def facts(source: Files) -> list[tuple[list[str], object, object]]:
    """Everything that the indexes of all shards say."""
    found = []
    for shard in range(len(source)):
        kept = source.kept(shard)
        spans = {name: [column.tolist() for column in pair] for name, pair in kept.spans.items()}
        found.append(([kept.key(row) for row in range(len(kept))], spans, kept.about["lost"]))
    return found


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve shards of none to eleven samples."""
    (tmp_path / "set").mkdir()
    for i in range(12):
        write_shard(tmp_path / "set" / f"{i:02d}.tar", map(sample, range(100 * i, 100 * i + i)))
    return tmp_path / "set"


@pytest.mark.parametrize("workers", [2, 3])
def test_several_processes_make_the_indexes_of_one(many: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Files(str(many))
    alone.prepare(range(12), workers=1)
    wanted, written = facts(alone), sorted(path.read_bytes() for path in many.glob(f"*{SUFFIX}"))
    assert len(written) == 12 and sum(len(keys) for keys, _, _ in wanted) == 66
    for path in many.glob(f"*{SUFFIX}"):
        path.unlink()
    together = Files(str(many))
    together.prepare(range(12), workers)
    assert sorted(path.read_bytes() for path in many.glob(f"*{SUFFIX}")) == written
    monkeypatch.setattr(files, "index", None)  # nothing is left to be made
    together.prepare(range(12), workers)
    monkeypatch.undo()
    assert facts(together) == wanted


def test_ranks_of_a_machine_begin_at_different_shards(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def noted(shard: Path, place: Path | None = None) -> Kept:
        made.append(shard.name)
        return index(shard, place)

    monkeypatch.setattr(files, "index", noted)
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        for path in many.glob(f"*{SUFFIX}"):
            path.unlink()
        made.clear()
        Files(str(many)).prepare(range(12), workers=1)
        assert made == [f"{(4 * rank + i) % 12:02d}.tar" for i in range(12)]


def test_a_broken_shard_among_many_is_counted_and_stops_nothing(many: Path) -> None:
    os.truncate(many / "11.tar", 700)
    (many / "05.tar").write_bytes(b"")
    source = Shards(str(many), workers=2)
    assert len(source) == 66 - 11 - 5 and source.counts[11] == source.counts[5] == 0
    assert source.lost["empty file"] == 1 and source.lost["truncated"] == 1


# The folder of an index


@pytest.fixture
def indexed(many: Path, tmp_path: Path) -> Path:
    """The index of the twelve shards in a folder of its own, as `clipkit data index --out` writes it."""
    folder = tmp_path / "indexed"
    lines = []
    for path in sorted(many.glob("*.tar")):
        kept = index(path, folder / cache_place(str(path)).name)
        lines.append({"name": str(path), "bytes": kept.about["bytes"], "samples": len(kept), "lost": {}})
    (folder / CATALOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not list(many.glob(f"*{SUFFIX}"))
    return folder


def test_the_folder_of_an_index_stands_for_its_shards(many: Path, indexed: Path) -> None:
    source, plain = Shards(str(indexed)), Shards(str(many))
    assert source.counts.tolist() == plain.counts.tolist() and source.names == plain.names
    assert source.fingerprint == plain.fingerprint, "a run may go on from either"
    for number in range(0, len(source), 5):
        assert source.image(number) == plain.image(number) and source.where(number) == plain.where(number)
    assert facts(source.files) == facts(plain.files)


def test_the_folder_of_an_index_is_believed_without_opening_a_shard(
    many: Path, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("index", "read"):
        monkeypatch.setattr(files, name, None)
    source = Shards(str(indexed))
    assert source.counts.tolist() == list(range(12))


def test_an_index_that_leaves_the_folder_is_made_again_in_it(many: Path, indexed: Path) -> None:
    wanted = facts(Files(str(indexed)))
    for path in indexed.glob(f"*{SUFFIX}"):
        path.unlink()
    source = Shards(str(indexed))
    assert facts(source.files) == wanted and len(list(indexed.glob(f"*{SUFFIX}"))) == 12
    assert not list(many.glob(f"*{SUFFIX}"))


def test_the_indexes_and_not_the_list_say_how_many_samples_have_what_is_wanted(many: Path, indexed: Path) -> None:
    lines = [json.loads(line) for line in (indexed / CATALOG).read_text().splitlines()]
    lines[1]["samples"] = 3
    (indexed / CATALOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Shards(str(indexed)).counts.tolist() == list(range(12))


# Open files


def test_few_indexes_and_files_stay_open_and_what_left_is_opened_again(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "OPEN_INDEXES", 3)
    monkeypatch.setattr(files, "OPEN_FILES", 2)
    source = Files(str(many))
    before = len(os.listdir("/proc/self/fd"))
    for shard in [*range(12), 3, 11, 10, 3]:
        assert len(source.kept(shard)) == shard
        assert os.fstat(source.handle(shard)).st_ino == (many / f"{shard:02d}.tar").stat().st_ino
    assert list(source._indexes) == [11, 10, 3] and list(source._handles) == [10, 3]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    copied = pickle.loads(pickle.dumps(source))
    assert not copied._handles and len(copied.kept(4)) == 4, "a copy for another process opens its own"
    del source
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_set_of_one_plain_file_needs_nothing_beside_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", [("0.jpg", b"p")])
    source = Files(str(path))
    assert len(source) == 1 and not source.is_remote(0) and source.claims() == {} and source.cache is None


def test_an_index_that_others_made_is_used(many: Path) -> None:
    table = Files(str(many)).kept(3)._table
    place = many / f"03.tar{SUFFIX}"
    place.unlink()
    assert write(table, place) and len(Files(str(many)).kept(3)) == 3
