"""Ours is read without clipkit, and theirs by us: FAISS alone, clip-retrieval's folders, autofaiss's reader.

What clip-retrieval's back end (clip_back.py) does with an index folder: `faiss.read_index(FOLDER/image.index)`, or with
IO_FLAG_MMAP | IO_FLAG_READ_ONLY; `search_and_reconstruct` with the settings that are in the file; row i of all
`metadata/*.parquet`, sorted by name and put behind each other. What autofaiss's reader (embedding_reader) does with a
folder of vectors: all `*.npy` sorted by name, each header by two patterns, empty ones left out.
"""

import json
import re
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit import search
from clipkit.errors import UserError
from clipkit.index.build import build
from clipkit.vectors import Stored, Vectors
from clipkit.vectors.joined import Joined
from tests.vectors import laying

ENGINES = ["flat", "hnsw", "IVF4,PQ8x4fs,Refine(SQ8)"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("flags", [0, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY])
def test_an_index_is_read_by_faiss_and_pyarrow_alone(tmp_path: Path, engine: str, flags: int) -> None:
    vectors = laying.ours(tmp_path / "v", (120, 80, 100))
    build(vectors, tmp_path / "i", engine=engine)
    files = sorted((tmp_path / "i" / "metadata").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in files])
    assert table["image_path"].to_pylist() == [f"k{i}" for i in range(300)]
    for kind in ("image", "text"):
        index = faiss.read_index(str(tmp_path / "i" / f"{kind}.index"), flags)
        assert index.ntotal == 300 and index.metric_type == faiss.METRIC_INNER_PRODUCT
        asked = Vectors(vectors).take(kind, np.arange(300))
        scores, found, rows = index.search_and_reconstruct(asked, 3)
        assert np.mean(found[:, 0] == np.arange(300)) > 0.97
        np.testing.assert_allclose(np.einsum("nd,nd->n", rows[:, 0], asked), scores[:, 0], atol=0.02)


@pytest.mark.parametrize("engine", ENGINES)
def test_faiss_alone_finds_what_clipkit_finds(tmp_path: Path, engine: str) -> None:
    """The settings that were tuned are in the FAISS file, whose own would be one list and no second ranking."""
    vectors = laying.ours(tmp_path / "v", (600,))
    build(vectors, tmp_path / "i", engine=engine, recall=0.97)
    asked = Vectors(vectors).take("text", np.arange(50))
    alone = faiss.read_index(str(tmp_path / "i" / "image.index")).search(asked, 10)[1]
    ours = Stored(tmp_path / "i").nearest("image", asked, 10)[1]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(alone, ours, strict=True)]) > 9.7


@pytest.mark.parametrize("counts, digits", [((3, 2), 1), ((1,) * 12, 1), ((1,) * 12, 2), ((5,), 3)])
def test_a_folder_of_clip_retrieval_is_opened_row_by_row(tmp_path: Path, counts: tuple[int, ...], digits: int) -> None:
    n = sum(counts)
    folder = laying.theirs(tmp_path / "v", counts, digits=digits, url=lambda i: f"u{i}", key=lambda i: f"{i:05d}")
    vectors = Vectors(folder)
    assert vectors.about == {} and vectors.kinds == ("image", "text") and len(vectors) == n
    wanted = laying.rows(n).astype(np.float16).astype(np.float32)
    assert np.array_equal(vectors.take("image", np.arange(n)), wanted)
    assert vectors.column("caption") == [f"c{i}" for i in range(n)]
    build(folder, tmp_path / "i")
    stored = Stored(tmp_path / "i")
    assert stored.nearest("image", wanted, 1)[1][:, 0].tolist() == list(range(n))
    assert [row["url"] for row in stored.records.get(range(n))] == [f"u{i}" for i in range(n)]
    names = sorted((tmp_path / "i" / "metadata").glob("*.parquet"))
    assert [c for path in names for c in pq.read_table(path)["caption"].to_pylist()] == [f"c{i}" for i in range(n)]


def test_rows_of_either_kind_alone_and_odd_columns_are_opened(tmp_path: Path) -> None:
    odd = {"id": lambda i: i * 7, "exif.make": lambda i: None, "status": lambda i: ["ok"][: i % 2]}
    folder = laying.theirs(tmp_path / "v", (4, 3), **odd)
    for path in (folder / "img_emb").iterdir():
        path.unlink()
    (folder / "stats").mkdir()
    (folder / "stats" / "0.json").write_text(json.dumps({"count": 7}))
    build(folder, tmp_path / "i")
    stored = Stored(tmp_path / "i")
    assert stored.kinds == ("text",)
    assert stored.nearest("text", laying.rows(7, 1000), 1)[1][:, 0].tolist() == list(range(7))
    assert stored.records.get([6])[0]["id"] == 6  # the row's number, whatever the metadata call so


def test_an_index_of_a_folder_without_a_model_asks_for_one(tmp_path: Path) -> None:
    build(laying.theirs(tmp_path / "v"), tmp_path / "i")
    with pytest.raises(UserError, match="--model"):
        search.open_index(tmp_path / "i").search(text="a red car")


def headers(folder: Path) -> list[tuple[int, int, str, int]]:
    """(rows, D, type, where the numbers begin) of each file of a folder, as autofaiss's reader finds them."""
    found = []
    for path in sorted(folder.glob("*.npy"), key=str):
        line = path.read_bytes()[:300].split(b"\n")[0]
        shape = re.search(r"'shape': \((\d+), (\d+)\)", str(line))
        kind = re.search(r"'descr': '([<f0-9]+)'", str(line))
        assert shape and kind, path
        if int(shape[1]):
            found.append((int(shape[1]), int(shape[2]), kind[1], len(line) + 1))
    return found


def test_the_reader_of_autofaiss_finds_the_rows_of_ours_in_their_order(tmp_path: Path) -> None:
    folder = laying.ours(tmp_path / "v", (2, 0, 3, *[1] * 9))
    found = headers(folder / "img_emb")
    assert sum(rows for rows, *_ in found) == 14
    files = [path for path in sorted((folder / "img_emb").glob("*.npy"), key=str) if len(np.load(path))]
    parts = [
        np.frombuffer(path.read_bytes()[begin:], kind).reshape(rows, width)
        for path, (rows, width, kind, begin) in zip(files, found, strict=True)
    ]
    assert np.array_equal(np.concatenate(parts).astype(np.float32), Joined([folder]).take("image", np.arange(14)))


def test_embedding_reader_itself_reads_ours(tmp_path: Path) -> None:
    reader = pytest.importorskip("embedding_reader", reason="embedding_reader is not installed")
    folder = laying.ours(tmp_path / "v", (20, 0, 3, *[1] * 9))
    rows = [batch for batch, _ in reader.EmbeddingReader(str(folder / "img_emb"), file_format="npy")(7)]
    assert np.array_equal(np.concatenate(rows), Joined([folder]).take("image", np.arange(32)))
