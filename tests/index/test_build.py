"""An index folder is built whole or not at all, in as many files as the memory wants, by one process or several."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit import index
from clipkit.cli.index import index as command
from clipkit.errors import UserError
from clipkit.index.build import GROWING, LEAST, WORKING, build, spans
from clipkit.index.remove import remove
from clipkit.vectors import Stored, Vectors, engine, exact
from clipkit.vectors.joined import Joined
from tests import making
from tests.vectors import laying

N = 400


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 samples, every fourth without a caption."""
    text = laying.rows(N, 1)
    text[::4] = 0
    return laying.ours(tmp_path_factory.mktemp("v") / "v", (250, 0, 150), image=laying.rows(N), text=text)


def test_the_folder_holds_what_was_said(vectors: Path, tmp_path: Path) -> None:
    about = build(vectors, tmp_path / "i", recall=0.9, memory=2_000_000_000, k=5)
    assert about == json.loads((tmp_path / "i" / "index.json").read_text())
    assert (about["format"], about["model"], about["digest"]) == (2, "m", "0123456789abcdef")
    assert (about["rows"], about["width"]) == (N, laying.WIDTH)
    assert about["vectors"] == [{"folder": str(vectors), "rows": N}]
    assert about["asked"] == {"recall": 0.9, "memory": 2_000_000_000, "k": 5, "engine": "auto"}
    for kind, facts in about["kinds"].items():
        assert facts["files"] == [f"{kind}.index"] and facts["factory"] == "Flat" and facts["rerank"] == "none"
        assert facts["recall"] == {
            "k": 5, "wish": 0.9, "met": True, "on": "all rows compared", "queries": 0, "value": 1.0
        }  # fmt: skip
    names = ["image.index", "index.json", "metadata", "records.sqlite", "text.hidden.npy", "text.index"]
    assert sorted(path.name for path in (tmp_path / "i").iterdir()) == names
    assert np.flatnonzero(np.load(tmp_path / "i" / "text.hidden.npy")).tolist() == list(range(0, N, 4))
    keys = [
        key
        for path in sorted((tmp_path / "i" / "metadata").iterdir())
        for key in pq.read_table(path)["key"].to_pylist()
    ]
    assert (
        keys
        == [f"k{i}" for i in range(N)]
        == [record["key"] for record in Stored(tmp_path / "i").records.get(range(N))]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_rows_without_a_caption_are_not_found_as_captions(vectors: Path, tmp_path: Path) -> None:
    build(vectors, tmp_path / "i")
    _, found = Stored(tmp_path / "i").nearest("text", laying.rows(3, 7), N)
    assert sorted(found[0][found[0] >= 0].tolist()) == [i for i in range(N) if i % 4]


@pytest.mark.parametrize("factory", ["flat", "IVF4,PQ8x4fs,Refine(SQ8)"])
def test_several_files_hold_the_rows_of_one(
    vectors: Path, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(vectors, tmp_path / "one", engine=factory, kinds=["image"])
    monkeypatch.setattr(
        sys.modules["clipkit.index.build"], "spans", lambda count, *_: [range(0, 123), range(123, count)]
    )
    about = build(vectors, tmp_path / "two", engine=factory, kinds=["image"])
    assert about["kinds"]["image"]["files"] == ["image.index", "image.1.index"]
    one, two = Stored(tmp_path / "one"), Stored(tmp_path / "two")
    np.testing.assert_array_equal(one.rows("image", np.arange(N)), two.rows("image", np.arange(N)))
    queries = laying.rows(20, 9)
    same = exact.recall(two.nearest("image", queries, 10)[1], one.nearest("image", queries, 10)[1])
    assert same.mean() >= (1.0 if factory == "flat" else 0.95)


def test_several_vectors_folders_are_one_index(tmp_path: Path) -> None:
    folders = [laying.ours(tmp_path / "a", (30,), seed=1), laying.ours(tmp_path / "b", (20, 5), seed=2, first=30)]
    about = build(folders, tmp_path / "i")
    assert about["rows"] == 55 and [one["rows"] for one in about["vectors"]] == [30, 25]
    stored = Stored(tmp_path / "i")
    _, found = stored.nearest("image", Vectors(folders[1]).take("image", np.array([3])), 1)
    assert found.tolist() == [[33]] and stored.records.get([33])[0]["key"] == "k33"


def test_a_choice_of_rows_is_an_index_of_them(vectors: Path, tmp_path: Path) -> None:
    kept = np.array([5, 8, 399])
    about = build(Joined([vectors], kept), tmp_path / "i", k=2)
    stored = Stored(tmp_path / "i")
    assert about["rows"] == 3 and np.array_equal(np.load(tmp_path / "i" / "kept.npy"), kept)
    assert [record["key"] for record in stored.records.get([0, 1, 2])] == ["k5", "k8", "k399"]
    np.testing.assert_array_equal(stored.vectors.take("image", np.arange(3)), Vectors(vectors).take("image", kept))


def test_an_index_takes_the_place_of_another_only_when_asked(vectors: Path, tmp_path: Path) -> None:
    build(vectors, tmp_path / "i", kinds=["image"])
    with pytest.raises(UserError) as error:
        build(vectors, tmp_path / "i")
    told = "already exists and is left as it is; remove it, or give another --out"
    assert str(error.value) == f"{tmp_path / 'i'}: {told}"
    assert list(build(vectors, tmp_path / "i", replace=True)["kinds"]) == ["image", "text"]


@given(count=st.integers(1, 10**6), each=st.floats(1, 5000), memory=st.integers(0, 4 * 10**9), world=st.integers(1, 9))
def test_files_share_the_rows_and_each_can_be_built_in_the_memory(
    count: int, each: float, memory: int, world: int
) -> None:
    parts = spans(count, each, memory, world)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert parts[0].start == 0 and parts[-1].stop == count and min(map(len, parts)) >= 1
    assert len(parts) >= min(world, count)
    assert max(map(len, parts)) * each * GROWING <= max(memory, LEAST) - WORKING + 2 * each * GROWING


def test_a_failed_build_leaves_nothing(vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "write", full)
    with pytest.raises(OSError, match="No space left"):
        build(vectors, tmp_path / "i")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_indexed_is_told(vectors: Path, tmp_path: Path) -> None:
    pictures = laying.ours(tmp_path / "pictures", (3,), text=False)
    nothing = laying.ours(tmp_path / "nothing", (3,), text=np.zeros((3, laying.WIDTH), np.float32))
    empty = laying.ours(tmp_path / "empty", (0,))
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    for source, more, told in (
        (pictures, {"kinds": ["text"]}, "--kind text: the vectors are of image"),
        (empty, {}, f"{empty}: holds no rows, there is nothing to index"),
        (nothing, {"engine": "IVF1,Flat"}, "the text rows are all zeros; leave them out with --kind"),
        (vectors, {"queries": blank}, f"--queries {blank}: is empty; a query a line is needed"),
        (
            laying.ours(tmp_path / "theirs", (3,), model=None), {"queries": Path(__file__)},
            "--queries: the vectors do not say which model made them, so that queries cannot be embedded",
        ),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            build(source, tmp_path / "i", **more)
        assert str(error.value) == told
    with pytest.raises(UserError, match=f"^--queries {tmp_path}/none.txt: a text file is needed, with a query a line"):
        build(vectors, tmp_path / "i", queries=tmp_path / "none.txt")
    assert not (tmp_path / "i").exists()


def test_two_ranks_build_what_one_builds(vectors: Path, tmp_path: Path) -> None:
    more = ("--engine", "IVF4,PQ16x4fs,Refine(Flat)", "--recall", "0.9")
    ended = making.launch("clipkit.index", str(vectors), "--out", str(tmp_path / "two"), *more)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("two: 400 rows") == 2  # of the two kinds, told once
    about = index.build(vectors, tmp_path / "one", engine="IVF4,PQ16x4fs,Refine(Flat)", recall=0.9)
    told = json.loads((tmp_path / "two" / "index.json").read_text())
    assert told["kinds"]["image"]["files"] == ["image.index", "image.1.index"]
    one, two = Stored(tmp_path / "one"), Stored(tmp_path / "two")
    for kind in ("image", "text"):
        assert told["kinds"][kind]["recall"]["queries"] == about["kinds"][kind]["recall"]["queries"]
        np.testing.assert_array_equal(one.rows(kind, np.arange(N)), two.rows(kind, np.arange(N)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    remove(tmp_path / "two", ["k7"])
    ended = making.launch("clipkit.index", str(tmp_path / "two"), "--compact")
    assert ended.returncode == 0, ended.stderr
    assert len(Stored(tmp_path / "two")) == N - 1


def test_the_command_prints_the_table(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "i")
    command([str(vectors)], out=place, kind=["image"], engine="IVF4,PQ16x4fs,Refine(Flat)")
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["index", "setting", "captions", "prompts", "pictures", "CPU ms", ""]
    assert rows[-1].startswith("image\tnprobe=4 candidates=") and rows[-1].endswith("\ttaken")
    assert last.startswith(f"{place}: 400 rows, image.index IVF4,PQ16x4fs,Refine(Flat)")
    command([place], retune=True, recall=0.2, as_json=True)
    assert json.loads(capsys.readouterr().out)["asked"]["recall"] == 0.2


def test_the_command_tells_what_it_needs(vectors: Path, tmp_path: Path) -> None:
    for arguments, told in (
        ({}, "--out: a folder to write is needed: `clipkit index VECTORS --out INDEX`"),
        (
            {"retune": True, "out": "x"},
            "--retune: one index is needed, and no --out: `clipkit index INDEX --retune --recall 0.9`",
        ),
        ({"out": str(tmp_path / "i"), "memory": "lots"}, "--memory lots: a size is needed, such as 600M or 4G"),
    ):
        with pytest.raises(UserError) as error:
            command([str(vectors)], **arguments)
        assert str(error.value) == told
