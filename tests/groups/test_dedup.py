"""`clipkit dedup VECTORS`: one of each group stays by rule; training, index and `data pack` read what is written."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipkit.datatools.curate.dedup import dedup as of_shards
from clipkit.errors import StorageError, UserError
from clipkit.groups import dedup
from clipkit.vectors import Stored, Vectors, selection
from tests import making
from tests.datatools.curating import angles, kept, one, trained_on, vectors_of, write
from tests.groups.making import of_files, plain_parquet


def numbers(path: str | Path) -> list[int]:
    return pq.read_table(path).column("number").to_pylist()


@pytest.fixture
def six(tmp_path: Path) -> str:
    """Six samples in two shards."""
    samples = [one(i, caption=f"c {i}") for i in range(6)]
    return write(tmp_path / "s", samples[:4], samples[4:])


def turned(held: str, out: Path, **more: Any) -> str:
    """Vectors at 0, 8, 16 (a chain), 90, 92 and 180 degrees; captions at 5 degrees from 2 and 4, far from others."""
    folder = vectors_of(held, out, angles(0, 8, 16, 90, 92, 180), angles(60, 60, 21, 180, 97, 0))
    about = json.loads((out / "vectors.json").read_text())
    (out / "vectors.json").write_text(json.dumps({**about, **more}))
    return folder


@pytest.mark.parametrize("keep", ["first", "best"])
@pytest.mark.parametrize("threshold", [0.99, 0.995, 0.9999])
def test_it_keeps_what_data_dedup_keeps(tmp_path: Path, six: str, keep: Any, threshold: float) -> None:
    folder = turned(six, tmp_path / "v")
    wanted = of_shards(six, str(tmp_path / "one"), vectors=folder, threshold=threshold, keep=keep)
    facts = dedup(folder, str(tmp_path / "two"), threshold=threshold, keep=keep)
    assert kept(tmp_path / "one") == kept(tmp_path / "two") == trained_on(six, tmp_path / "two")
    for name in ("of", "kept", "groups", "largest_group", "search"):
        assert facts[name] == wanted[name]
    assert facts["duplicates"] == wanted["dropped"].get("duplicate", 0) and facts["read_by"] == "index and training"
    assert [f"{number:05d}" for number in numbers(tmp_path / "two")] == kept(tmp_path / "two")


def test_what_a_chain_alone_removes_is_counted(tmp_path: Path) -> None:
    rows = angles(0, 8, 16, 24, 90, 95, 180)  # cosines of 8 degrees .9903, of 16 .961
    folder = of_files(tmp_path, rows, rows[[2, 3, 2, 3, 0, 0, 0]])
    facts = dedup(folder, str(tmp_path / "one"), threshold=0.99)
    assert (facts["duplicates"], facts["by_chain"]) == (4, 2)
    best = dedup(folder, str(tmp_path / "two"), threshold=0.99, keep="best")  # 16 degrees stays, near to 8 and 24
    assert (best["duplicates"], best["by_chain"]) == (4, 1)


def test_rows_in_another_order_than_the_shards_are_told_apart(tmp_path: Path, six: str) -> None:
    folder = vectors_of(six, tmp_path / "v", angles(0, 90, 1, 91, 180), numbers=[5, 3, 2, 0, 1])
    facts = dedup(folder, str(tmp_path / "sel"), threshold=0.99)
    assert facts["kept"] == 3 and trained_on(six, tmp_path / "sel") == ["00001", "00003", "00005"]
    table = pq.read_table(tmp_path / "sel").to_pydict()
    assert dict(zip(table["key"], table["number"], strict=True)) == {"00001": 4, "00003": 1, "00005": 0}
    assert selection.numbers(tmp_path / "sel", Vectors(folder)).tolist() == [0, 1, 4]
    about = json.loads(pq.read_schema(tmp_path / "sel").metadata[b"clipkit"])
    assert (about["command"], about["threshold"], about["vectors"], about["rows"]) == ("dedup", 0.99, folder, 5)


def test_of_loose_files_the_largest_stays_and_pack_reads_them(tmp_path: Path) -> None:
    folder = of_files(tmp_path, angles(0, 1, 2, 90, 180, 181))
    facts = dedup(folder, str(tmp_path / "kept.parquet"), threshold=0.99, keep="largest")
    assert numbers(tmp_path / "kept.parquet") == [2, 3, 5] and facts["read_by"] == "index and data pack"
    done = making.clipkit("data", "pack", "kept.parquet", "packed", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"]["all"]["samples"] == 3


def test_rows_that_hold_nothing_stay(tmp_path: Path) -> None:
    rows = angles(0, 0, 0, 90)
    rows[[1, 2]] = 0
    folder = of_files(tmp_path, angles(0, 0, 0, 0), rows, ["a", "", "", "b"])
    assert dedup(folder, str(tmp_path / "sel"), kind="text")["kept"] == 4
    assert dedup(folder, str(tmp_path / "best"), keep="best")["kept"] == 1
    assert numbers(tmp_path / "best") == [0]


@pytest.mark.parametrize("count", [1, 2])
def test_one_row_or_two_are_enough(tmp_path: Path, count: int) -> None:
    folder = of_files(tmp_path, angles(*[0.0] * count))
    facts = dedup(folder, str(tmp_path / "sel"), picture=str(tmp_path / "groups.png"))
    assert facts["kept"] == 1 and facts["largest_group"] == (2 if count == 2 else 0)
    with Image.open(tmp_path / "groups.png") as image:
        assert image.format == "PNG"


def test_a_picture_says_what_cannot_be_read(tmp_path: Path) -> None:
    folder = of_files(tmp_path, angles(0, 0, 0))
    os.unlink(tmp_path / "files/1.jpg")
    facts = dedup(folder, str(tmp_path / "sel"), picture=str(tmp_path / "deep/groups.png"))
    assert facts["groups"] == 1 and (tmp_path / "deep/groups.png").is_file()


def test_clip_retrieval_s_folder_gives_a_selection_for_the_index(tmp_path: Path) -> None:
    folder = plain_parquet(tmp_path / "v", angles(0, 1, 90), image_path=["x", "y", "z"], caption=["", "", ""])
    facts = dedup(folder, str(tmp_path / "sel"), threshold=0.99)
    assert facts["read_by"] == "index" and pq.read_table(tmp_path / "sel").to_pydict() == {
        "number": [0, 2], "key": ["x", "z"],
    }  # fmt: skip
    assert selection.numbers(tmp_path / "sel", Vectors(folder)).tolist() == [0, 2]


def test_shards_that_moved_are_named_or_training_is_left_out(
    tmp_path: Path, six: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = turned(six, tmp_path / "v", source=str(tmp_path / "gone"))
    assert dedup(folder, str(tmp_path / "one"))["read_by"] == "index"
    wanted = "training cannot read the selection, the index can; --shards SHARDS names them"
    assert f"gone: no such file or folder; give a folder, a glob or a {{000..012}} pattern: {wanted}" in (
        capsys.readouterr().err
    )
    assert dedup(folder, str(tmp_path / "two"), shards=six)["read_by"] == "index and training"
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two") == [0, 3, 5]
    with pytest.raises(UserError, match="no/where: no such file or folder"):
        dedup(folder, str(tmp_path / "three"), shards="no/where")
    other = write(tmp_path / "t", [one(0)])
    with pytest.raises(UserError) as error:
        dedup(folder, str(tmp_path / "three"), shards=other)
    wanted = f"{folder}: 3 of 3 rows are of no sample of {other}; --shards SHARDS names those that it was made of"
    assert str(error.value) == wanted and not (tmp_path / "three").exists()
    about = json.loads((Path(folder) / "vectors.json").read_text())
    (Path(folder) / "vectors.json").write_text(json.dumps({**about, "source": None}))
    assert dedup(folder, str(tmp_path / "four"))["read_by"] == "index"
    assert "does not name its shards: training cannot read the selection" in capsys.readouterr().err


# What reads a selection


def test_selections_of_something_else_are_refused(tmp_path: Path, six: str) -> None:
    folder = of_files(tmp_path / "a", angles(0, 0, 90, 180))
    path = tmp_path / "sel"
    dedup(folder, str(path))
    held = Vectors(folder)
    assert selection.numbers(path, held).tolist() == [0, 2, 3]

    def refused(source: Vectors, name: Path = path) -> str:
        with pytest.raises(UserError) as error:
            selection.numbers(name, source)
        return str(error.value)

    other = Vectors(of_files(tmp_path / "b", angles(0, 0, 90)))
    assert refused(other) == f"{path}: was made of other vectors than {other.folder}; make it again"
    swapped = plain_parquet(tmp_path / "c", angles(0, 0, 0, 0), key=["k0", "k1", "k3", "k2"])
    assert refused(Vectors(swapped)) == f"{path}: was made of other vectors than {swapped}; make it again"
    assert refused(held, tmp_path / "no") == (
        f"{tmp_path}/no: no such selection; `clipkit dedup VECTORS` and `cluster` write one"
    )
    (tmp_path / "text").write_text("hello")
    assert refused(held, tmp_path / "text") == (
        f"{tmp_path}/text: not a selection of `clipkit dedup` or `cluster` (ArrowInvalid)"
    )
    of_shards(six, str(tmp_path / "samples"), exact=True)
    wanted = "selects samples of shards and no rows of vectors; `clipkit dedup VECTORS` and `cluster` do"
    assert refused(held, tmp_path / "samples") == f"{tmp_path}/samples: {wanted}"
    metadata = pq.read_schema(path).metadata
    for rows in ([], [-1], [1, 1]):
        table = pa.table({"number": pa.array(rows, pa.int64()), "key": ["k"] * len(rows)})
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "made")
        wanted = f"{tmp_path}/made: rows from 0 on are needed, each once, and at least one"
        assert refused(held, tmp_path / "made") == wanted


# Refusals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 95}, "--threshold: a cosine above 0 and up to 1 is needed, got 95"),
        ({"threshold": 0}, "--threshold: a cosine above 0 and up to 1 is needed, got 0"),
        ({"keep": "last"}, "--keep: one of first, largest, best is needed, got 'last'"),
        ({"kind": "text"}, "{folder}: holds no text embeddings, only image"),
        (
            {"keep": "best"},
            "{folder}: --keep best compares pictures with their captions, and only image embeddings are there; embed "
            "again with captions, or type --keep first",
        ),
        (
            {"keep": "largest"},
            "{folder}: does not say how large its pictures are; embed again, or type --keep first",
        ),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    folder = plain_parquet(tmp_path / "v", angles(0, 1), image_path=["x", "y"])
    with pytest.raises(UserError) as error:
        dedup(folder, str(tmp_path / "sel"), **given)
    assert str(error.value) == message.format(folder=folder) and not (tmp_path / "sel").exists()


def test_nothing_is_written_over_and_no_rows_are_told(tmp_path: Path) -> None:
    folder = of_files(tmp_path, angles(0, 1))
    (tmp_path / "sel").write_text("mine")
    for more in ({}, {"picture": str(tmp_path / "sel")}):
        with pytest.raises(
            UserError, match="sel: already exists and is left as it is; remove it, or give another name"
        ):
            dedup(folder, str(tmp_path / ("new" if more else "sel")), **more)
    assert (tmp_path / "sel").read_text() == "mine"
    with pytest.raises(StorageError, match="sel/below: cannot be written"):
        dedup("not/read/yet", str(tmp_path / "sel/below"))
    none = plain_parquet(tmp_path / "none", np.empty((0, 2)), image_path=pa.array([], pa.string()))
    with pytest.raises(UserError) as error:
        dedup(none, str(tmp_path / "new"))
    assert str(error.value) == f"{none}: holds no rows"


def test_the_command_prints_what_it_did(tmp_path: Path, six: str) -> None:
    folder = turned(six, tmp_path / "v")
    done = making.clipkit("dedup", folder, "--out", "kept.parquet", "--threshold", "0.99", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("\t") for line in done.stdout.splitlines()[1:])
    assert (rows["of"], rows["kept"], rows["read by"]) == ("6", "3", "index and training")
    again = making.clipkit("dedup", folder, "--out", "kept.parquet", "--json", cwd=tmp_path)
    assert again.returncode == 2 and again.stderr.startswith("clipkit: kept.parquet: already exists")


def test_the_index_of_a_selection_finds_only_its_rows(tmp_path: Path) -> None:
    rows = angles(0, 1, 2, 90, 180, 181)
    folder = of_files(tmp_path, rows)
    dedup(folder, str(tmp_path / "sel"), threshold=0.99, keep="largest")
    done = making.clipkit("index", folder, "--select", "sel", "--out", "index", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = Stored(tmp_path / "index")
    assert len(stored) == 3 and [record["key"] for record in stored.records.get([0, 1, 2])] == ["k2", "k3", "k5"]
    _, found = stored.nearest("image", rows.astype(np.float32), 1)
    assert found[:, 0].tolist() == [0, 0, 0, 1, 2, 2]
    twice = making.clipkit("index", folder, folder, "--select", "sel", "--out", "no", cwd=tmp_path)
    wanted = "--select: one vectors folder is needed, the one that the selection was made of"
    assert twice.returncode == 2 and twice.stderr == f"clipkit: {wanted}\n" and not (tmp_path / "no").exists()
