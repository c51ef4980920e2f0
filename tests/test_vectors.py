"""Embeddings and indexes on disk: what was written comes back in its order, and what is missing or broken is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit import vectors
from clipkit.errors import StorageError, UserError
from clipkit.vectors import Writer


def rows(n: int, seed: int = 0, width: int = 6) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def records(first: int, n: int) -> list[dict[str, Any]]:
    return [{"key": f"k{i}", "caption": f"c{i}", "shard": "s", "offset": i, "size": 1} for i in range(first, first + n)]


def test_parts_come_back_in_order_and_row_by_row(tmp_path: Path) -> None:
    counts, first = [2, 1, 3, *[1] * 9], 0  # more than ten parts: part 10 comes after part 9, not after part 1
    writer = Writer(tmp_path / "v")
    writer.with_text = True
    for i, n in enumerate(counts):
        writer.part(rows(n, i), rows(n, i + 100), records(first, n))
        first += n
    assert not (tmp_path / "v").exists()
    writer.finish({"model": "m"})
    assert vectors.about(tmp_path / "v") == {"model": "m", "rows": 15, "parts": 12, "texts": True}
    for kind, seed in (("img_emb", 0), ("text_emb", 100)):
        read = list(vectors.parts(tmp_path / "v", kind))
        assert all(part.dtype == np.float16 for part in read)
        wanted = [rows(n, i + seed).astype(np.float16) for i, n in enumerate(counts)]
        assert all(np.array_equal(part, other) for part, other in zip(read, wanted, strict=True))
    table = vectors.records(tmp_path / "v")
    assert (
        table["image_path"].to_pylist()
        == [f"k{i}" for i in range(15)]
        == [f"k{i}" for i in table["offset"].to_pylist()]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_a_source_without_captions_has_no_text_part(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "v")
    writer.part(rows(2), None, records(0, 2))
    writer.finish({})
    assert vectors.about(tmp_path / "v")["texts"] is False and list(vectors.parts(tmp_path / "v", "text_emb")) == []


def test_a_dropped_writer_leaves_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "deep" / "v")
    writer.part(rows(2), None, records(0, 2))
    writer.drop()
    assert list((tmp_path / "deep").iterdir()) == []


def test_what_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    Writer(tmp_path / "empty").finish({})
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(UserError) as error:
            Writer(place)
        assert str(error.value) == f"{place}: already exists and is left as it is; remove it, or give another --out"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_none_of_ours_names_the_command_that_makes_one(tmp_path: Path) -> None:
    embed, index = "`clipkit embed MODEL SOURCE --out VECTORS`", "`clipkit index VECTORS --out INDEX`"
    for path, name, message in (
        (tmp_path / "x", vectors.ABOUT, f"no such folder; {embed} makes one"),
        (tmp_path / "x", vectors.INDEX_ABOUT, f"no such folder; {index} makes one"),
        (tmp_path, vectors.ABOUT, f"holds no vectors.json; {embed} makes a folder that does"),
        (tmp_path, vectors.INDEX_ABOUT, f"holds no index.json; {index} makes a folder that does"),
    ):
        with pytest.raises(UserError) as error:
            vectors.about(path, name)
        assert str(error.value) == f"{path}: {message}"
    (tmp_path / vectors.ABOUT).write_text("{")
    with pytest.raises(StorageError, match=f"^{tmp_path}/vectors.json: damaged"):
        vectors.about(tmp_path)


def test_missing_metadata_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        vectors.records(tmp_path)
    wanted = "metadata/ is missing or empty, and says what each row is; make the folder again"
    assert str(error.value) == f"{tmp_path}: {wanted}"


@given(n=st.integers(1, 40), queries=st.integers(1, 5), k=st.integers(1, 50), seed=st.integers(0, 99))
def test_a_search_equals_sorting_the_products(n: int, queries: int, k: int, seed: int) -> None:
    base, asked = rows(n, seed), rows(queries, seed + 1000)
    scores, found = vectors.search(vectors.flat_index(base), asked, k)
    wanted = np.sort(asked @ base.T, axis=1)[:, ::-1][:, :k]
    assert scores.shape == found.shape == (queries, k)
    np.testing.assert_allclose(scores[:, : min(n, k)], wanted, atol=1e-5)
    products = np.take_along_axis(asked @ base.T, found[:, : min(n, k)], 1)
    np.testing.assert_allclose(products, wanted, atol=1e-5)
    assert (found[:, n:] == -1).all()


def test_an_index_comes_back_from_its_file(tmp_path: Path) -> None:
    index = vectors.flat_index(rows(5).astype(np.float16))
    vectors.add(index, rows(2, 1))
    vectors.write_index(index, tmp_path / "x.faiss")
    wanted, found = (vectors.search(i, rows(3, 2), 4) for i in (index, vectors.read_index(tmp_path / "x.faiss")))
    assert all(np.array_equal(one, two) for one, two in zip(wanted, found, strict=True))


@pytest.mark.parametrize("content", [None, b"", b"junk" * 50])
def test_a_broken_index_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.faiss"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=f"^{path}: not a readable FAISS index"):
        vectors.read_index(path)
