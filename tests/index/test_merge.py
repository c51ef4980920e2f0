"""Indexes that were built apart answer as one that was built of all rows."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.errors import UserError
from clipkit.index.build import build
from clipkit.index.compact import compact
from clipkit.index.merge import merge
from clipkit.index.remove import remove
from clipkit.vectors import Stored
from tests.vectors import laying

CODED = "IVF4,PQ8x4fs,Refine(SQ8)"


def apart(place: Path, **options: Any) -> tuple[list[Path], list[Path]]:
    """(vectors folders of 50, 20 and 51 rows, an index of each)."""
    counts = ((30, 20), (20,), (1, 50))
    folders = [
        laying.ours(place / f"v{i}", each, seed=i, first=sum(map(sum, counts[:i]))) for i, each in enumerate(counts)
    ]
    for i, folder in enumerate(folders):
        build(folder, place / f"i{i}", **options)
    return folders, [place / f"i{i}" for i in range(3)]


def test_merged_indexes_equal_one_of_all(tmp_path: Path) -> None:
    folders, places = apart(tmp_path)
    facts = merge(places, tmp_path / "all")
    build(folders, tmp_path / "whole")
    assert laying.answers(tmp_path / "all") == laying.answers(tmp_path / "whole")
    assert facts["rows"] == 121 and [each["rows"] for each in facts["vectors"]] == [50, 20, 51]
    assert facts["kinds"]["image"]["files"] == ["image.index", "image.1.index", "image.2.index"]
    compact(tmp_path / "all")
    assert laying.answers(tmp_path / "all") == laying.answers(tmp_path / "whole")
    assert Stored(tmp_path / "all").about["kinds"]["image"]["files"] == ["image.index"]


def test_coded_indexes_merge_and_stay_as_they_are(tmp_path: Path) -> None:
    folders = [laying.ours(tmp_path / f"v{i}", (200,), seed=i, first=200 * i) for i in range(2)]
    places = [tmp_path / f"i{i}" for i in range(2)]
    for folder, place in zip(folders, places, strict=True):
        build(folder, place, engine=CODED)
    before = [(path, path.read_bytes()) for place in places for path in sorted(place.glob("*.index"))]
    facts = merge(places, tmp_path / "all")
    stored = Stored(tmp_path / "all")
    for kind in ("image", "text"):
        _, found = stored.nearest(kind, stored.vectors.take(kind, np.arange(400)), 1)
        assert np.mean(found[:, 0] == np.arange(400)) > 0.95
    assert facts["kinds"]["image"]["recall"]["value"] > 0.5
    assert all(path.read_bytes() == content for path, content in before)


def test_the_recall_of_a_small_and_a_large_index_is_measured(tmp_path: Path) -> None:
    for i, engine in enumerate(("flat", CODED)):
        build(laying.ours(tmp_path / f"v{i}", (200,), seed=i, first=200 * i), tmp_path / f"i{i}", engine=engine)
    facts = merge([tmp_path / "i0", tmp_path / "i1"], tmp_path / "all")["kinds"]["image"]
    assert facts["factory"] == f"Flat + {CODED}" and facts["recall"]["on"] == "captions"
    assert facts["recall"]["queries"] > 0 and facts["table"]


def test_removed_rows_and_chosen_rows_stay_what_they_are(tmp_path: Path) -> None:
    _, places = apart(tmp_path)
    remove(places[0], ["k0", "k49"])
    compact(places[0])
    remove(places[1], ["k55"])
    merge(places, tmp_path / "all")
    stored = Stored(tmp_path / "all")
    keys = [f"k{i}" for i in range(121) if i not in (0, 49)]
    assert [row["key"] for row in stored.records.get(range(119))] == keys == stored.vectors.column("key")
    assert stored.removed is not None and [keys[i] for i in np.flatnonzero(stored.removed)] == ["k55"]
    assert np.array_equal(stored.rows("image", np.arange(119)), stored.vectors.take("image", np.arange(119)))


def test_repeated_keys_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        build(laying.ours(tmp_path / f"v{i}", (10,), seed=i, first=5 * i), tmp_path / f"i{i}")
    merge([tmp_path / "i0", tmp_path / "i1"], tmp_path / "all")
    wanted = "--merge: 5 of 20 rows have a key that another row has too; all of them are found"
    assert wanted in capsys.readouterr().err
    assert Stored(tmp_path / "all").records.with_keys(["k7"]) == {"k7": [7, 12]}


def test_without_vectors_the_most_careful_knobs_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, places = apart(tmp_path)
    shutil.rmtree(folders[1])
    facts = merge(places, tmp_path / "all")
    told = capsys.readouterr().err
    assert f"{places[1]}: its vectors are not what they were" in told
    assert f"{tmp_path / 'all'}: its recall is not measured, for which all vectors are needed" in told
    assert facts["kinds"]["image"]["recall"] == {} and len(Stored(tmp_path / "all")) == 121


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    build(laying.ours(tmp_path / "v", (9,)), tmp_path / "a")
    build(laying.ours(tmp_path / "w", (9,), digest="f" * 16, model="n"), tmp_path / "other")
    build(laying.ours(tmp_path / "x", (9,), text=False), tmp_path / "silent")
    build(laying.ours(tmp_path / "y", (9,), seed=1), tmp_path / "b")
    a, two = (
        tmp_path / "a",
        "--merge: two or more different indexes are needed, as in `clipkit index A B --merge --out C`",
    )
    shutil.copytree(a, tmp_path / "c")
    facts = json.loads((tmp_path / "c" / "index.json").read_text())
    facts["kinds"]["image"]["rerank"] = "rows"
    (tmp_path / "c" / "index.json").write_text(json.dumps(facts))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    for places, out, message in (
        ([a], "out", two),
        ([a, tmp_path / "." / "a"], "out", two),
        ([a, tmp_path / "other"], "out", f"{tmp_path / 'other'}: made by another model (n) than {a} (m), their rows "
         "cannot be compared; embed with one model"),
        ([a, tmp_path / "silent"], "out", f"--merge: {a} has image and text, {tmp_path / 'silent'} has image; the same "
         "kinds are needed"),
        ([a, tmp_path / "c"], "out", f"--merge: {tmp_path / 'c'} ranks its rows otherwise than {a}; build both alike"),
        ([a, tmp_path / "b"], "there", f"{tmp_path / 'there'}: already exists and is left as it is; remove it, or give "
         "another --out"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            merge(places, tmp_path / out)
        assert str(error.value) == message
    assert not (tmp_path / "out").exists() and (tmp_path / "there" / "file").read_text() == "mine"
