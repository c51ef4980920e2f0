"""`clipkit cluster`: rows go to their nearest centre, what is shown is theirs, and a balanced selection is balanced."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.errors import StorageError, UserError
from clipkit.groups import cluster
from clipkit.groups.cluster import balanced
from tests import making
from tests.datatools.curating import angles, kept, one, trained_on, vectors_of, write
from tests.groups.making import around, of_files, plain_parquet

AXES = np.eye(6)[:3]


def three(tmp_path: Path, **more: Any) -> tuple[str, np.ndarray]:
    """(a vectors folder of 9, 5 and 2 pictures around three directions, its rows)."""
    rows = around(AXES, [9, 5, 2], 0.05)
    return of_files(tmp_path, rows, **more), rows


def test_each_row_is_in_the_cluster_whose_centre_is_nearest(tmp_path: Path) -> None:
    folder, rows = three(tmp_path)
    facts = cluster(folder, str(tmp_path / "c"), clusters=3)
    table = pq.read_table(tmp_path / "c/clusters.parquet").to_pydict()
    centres = np.load(tmp_path / "c/centres.npy")
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    assert table["number"] == list(range(16)) and table["key"] == [f"k{i}" for i in range(16)]
    assert table["cluster"] == (rows @ centres.T).argmax(1).tolist() == [0] * 9 + [1] * 5 + [2] * 2
    np.testing.assert_allclose(table["cosine"], (rows @ centres.T).max(1), atol=1e-5)
    for i, members in enumerate(np.split(rows, [9, 14])):
        mean = members.mean(0)
        np.testing.assert_allclose(centres[i], mean / np.linalg.norm(mean), atol=1e-4)
    assert facts == {
        "of": 16, "left_out": 0, "clusters": 3, "largest": 9, "smallest": 2,
        "cosine": round(float((rows @ centres.T).max(1).mean()), 4), "out": str(tmp_path / "c"),
    }  # fmt: skip
    assert sorted(os.listdir(tmp_path / "c")) == [
        "centres.npy", "clusters.html", "clusters.json", "clusters.parquet",
    ]  # fmt: skip


def test_what_tells_of_a_cluster_is_nearest_to_its_centre(tmp_path: Path) -> None:
    text = around(AXES[[1, 1, 0]], [9, 5, 2], 0.01)
    text[3] = AXES[0]
    folder, rows = three(tmp_path, text=text, captions=["<b>same</b>", "other"] + [f"c{i}" for i in range(14)])
    cluster(folder, str(tmp_path / "c"), clusters=3)
    told = json.loads((tmp_path / "c/clusters.json").read_text())["each"]
    centres = np.load(tmp_path / "c/centres.npy")
    assert told[0]["numbers"] == np.argsort(-(rows[:9] @ centres[0]), kind="stable")[:8].tolist()
    assert told[0]["captions"][0] == "c1" and len(told[0]["captions"]) == 3  # of row 3, whose text is at the centre
    assert [one["rows"] for one in told] == [9, 5, 2] and told[2]["keys"] == [f"k{i}" for i in told[2]["numbers"]]
    page = (tmp_path / "c/clusters.html").read_text()
    assert page.count("<img alt=") == 8 + 5 + 2 and "<b>same</b>" not in page
    assert "default-src 'none'" in page


def test_pictures_that_are_gone_are_told_on_the_page(tmp_path: Path) -> None:
    folder, _ = three(tmp_path, captions=[""] * 16)
    for i in range(16):
        os.unlink(tmp_path / f"files/{i}.jpg")
    cluster(folder, str(tmp_path / "c"), clusters=3)
    assert "Pictures that could not be read: 15; the first: " in (tmp_path / "c/clusters.html").read_text()
    named = plain_parquet(tmp_path / "plain", around(AXES, [2, 2, 2], 0.01), image_path=list("abcdef"))
    cluster(named, str(tmp_path / "d"), clusters=2, balance=1)
    assert "its place is not known" in (tmp_path / "d/clusters.html").read_text()
    assert json.loads((tmp_path / "d/clusters.json").read_text())["each"][0]["captions"] == []
    assert len(pq.read_table(tmp_path / "d/kept.parquet")) == 2


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), most=st.integers(1, 12), seed=st.integers(0, 9))
def test_balanced_takes_so_many_of_each_and_the_spread_reaches_far(sizes: list[int], most: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    of = dice.permutation(np.repeat(np.arange(len(sizes)), sizes))
    cosine = dice.permutation(len(of)) / len(of)
    for pick in ("nearest", "spread"):
        kept = balanced(of, cosine, most, pick)
        assert np.bincount(of[kept], minlength=len(sizes)).tolist() == [min(size, most) for size in sizes]
        assert (np.diff(kept) > 0).all()
    for i, size in enumerate(sizes):
        ranked = np.flatnonzero(of == i)[np.argsort(-cosine[of == i])].tolist()
        count = min(size, most)
        assert set(balanced(of, cosine, most, "nearest")) & set(ranked) == set(ranked[:count])
        wanted = {ranked[-(-(j + 1) * size // count) - 1] for j in range(count)}
        assert set(balanced(of, cosine, most, "spread")) & set(ranked) == wanted


def test_training_reads_a_balanced_selection(tmp_path: Path) -> None:
    samples = [one(i, caption="c") for i in range(6)]
    source = write(tmp_path / "s", samples[:4], samples[4:])
    folder = vectors_of(source, tmp_path / "v", angles(0, 1, 2, 90, 91, 180))
    facts = cluster(folder, str(tmp_path / "c"), clusters=3, balance=1, pick="nearest")
    path = tmp_path / "c/kept.parquet"
    assert facts["kept"] == 3 and facts["read_by"] == "index and training"
    assert trained_on(source, path) == kept(path) == ["00001", kept(path)[1], "00005"]
    assert kept(path)[1] in ("00003", "00004")
    about = json.loads(pq.read_schema(path).metadata[b"clipkit"])
    assert (about["command"], about["balance"], about["pick"], about["clusters"]) == ("cluster", 1, "nearest", 3)


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    folder, _ = three(tmp_path)
    for name in "ab":
        cluster(folder, str(tmp_path / name))
    for name in ("clusters.parquet", "centres.npy", "clusters.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a/clusters.json").read_text())["clusters"] <= 4  # the root of 16


def test_rows_that_hold_nothing_are_left_out_and_empty_clusters_dropped(tmp_path: Path) -> None:
    rows = angles(0, 0, 0, 90)
    rows[1] = 0
    folder = of_files(tmp_path, rows)
    facts = cluster(folder, str(tmp_path / "c"), clusters=3)
    assert facts["left_out"] == 1 and 2 <= facts["clusters"] <= 3
    assert pq.read_table(tmp_path / "c/clusters.parquet").column("number").to_pylist() == [0, 2, 3]
    empty = of_files(tmp_path / "empty", angles(0, 0), np.zeros((2, 2)))
    with pytest.raises(UserError) as error:
        cluster(empty, str(tmp_path / "e"), kind="text")
    assert str(error.value) == f"{empty}: all rows of text embeddings are empty"
    alone = of_files(tmp_path / "one", angles(0))
    assert cluster(alone, str(tmp_path / "d"))["clusters"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clusters": 0}, "--clusters: a number from 1 on is needed, got 0"),
        ({"balance": 0}, "--balance: a number from 1 on is needed, got 0"),
        ({"pick": "best"}, "--pick: one of spread, nearest is needed, got 'best'"),
        ({"clusters": 3}, "--clusters: at most 2, as many as there are rows, got 3"),
        ({"kind": "text"}, "{folder}: holds no text embeddings, only image"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    folder = plain_parquet(tmp_path / "v", angles(0, 1), image_path=["x", "y"])
    with pytest.raises(UserError) as error:
        cluster(folder, str(tmp_path / "c"), **given)
    assert str(error.value) == message.format(folder=folder) and sorted(os.listdir(tmp_path)) == ["v"]


def test_what_exists_is_left_as_it_is(tmp_path: Path) -> None:
    folder, _ = three(tmp_path)
    (tmp_path / "c").write_text("mine")
    with pytest.raises(UserError, match="c: already exists and is left as it is; remove it, or give another name$"):
        cluster(folder, str(tmp_path / "c"))
    with pytest.raises(StorageError, match="c/d: cannot be written"):
        cluster("not/read/yet", str(tmp_path / "c/d"))
    assert (tmp_path / "c").read_text() == "mine"


def test_the_command_prints_what_it_did(tmp_path: Path) -> None:
    folder, _ = three(tmp_path)
    done = making.clipkit("cluster", folder, "--out", "c", "--clusters", "3", "--balance", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["clusters"], facts["kept"], facts["read_by"]) == (3, 6, "index and data pack")
