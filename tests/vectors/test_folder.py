"""A vectors folder gives its rows by number, whatever its parts, and says what is wrong with it."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.errors import StorageError, UserError
from clipkit.vectors import Vectors
from tests.vectors import laying

COUNTS = (4, 0, 1, 9)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    return Vectors(laying.ours(tmp_path_factory.mktemp("v") / "v", COUNTS, image=laying.rows(14)))


@given(
    numbers=st.lists(st.integers(0, 13)), start=st.integers(0, 13), count=st.integers(0, 14), size=st.integers(1, 20)
)
def test_rows_come_by_number(opened: Vectors, numbers: list[int], start: int, count: int, size: int) -> None:
    every = laying.rows(14).astype(np.float16).astype(np.float32)
    taken = opened.take("image", np.array(numbers, np.int64))
    assert taken.dtype == np.float32 and np.array_equal(taken, every[numbers])
    stop = min(start + count, 14)
    blocks = list(opened.blocks("image", start, stop, size))
    assert [first for first, _ in blocks] == list(range(start, stop, size))
    assert np.array_equal(np.concatenate([rows for _, rows in blocks] or [every[:0]]), every[start:stop])


@given(count=st.integers(0, 20), seed=st.integers(0, 5))
def test_a_sample_holds_each_row_once_at_most_and_its_numbers_ascend(opened: Vectors, count: int, seed: int) -> None:
    numbers, rows = opened.sample("text", count, seed)
    assert len(numbers) == min(count, 14) and (np.diff(numbers) > 0).all()
    assert np.array_equal(rows, opened.take("text", numbers))


def test_a_folder_says_what_it_is(opened: Vectors) -> None:
    assert (len(opened), opened.width, opened.kinds) == (14, laying.WIDTH, ("image", "text"))
    assert opened.nbytes == 14 * laying.WIDTH * 2 and opened.about["rows"] == 14


def test_rows_of_zeros_are_let_pass_and_other_lengths_are_refused(tmp_path: Path) -> None:
    image = laying.rows(6)
    image[2] = 0
    assert not Vectors(laying.ours(tmp_path / "zeros", (3, 3), image=image)).take("image", np.arange(6))[2].any()
    for number, (factor, told) in enumerate(((1.1, "1.1"), (np.nan, "nan"))):
        image[4] = laying.rows(6)[4] * factor
        folder = laying.ours(tmp_path / str(number), (3, 3), image=image)
        with pytest.raises(UserError) as error:
            list(Vectors(folder).blocks("image"))
        assert str(error.value) == (
            f"{folder}: row 4 of img_emb/ has the length {told}; "
            "rows of length 1 are needed: embed again, or divide each row by its length"
        )


def _save(folder: Path, *arrays: np.ndarray) -> Path:
    (folder / "img_emb").mkdir(parents=True)
    for i, array in enumerate(arrays):
        np.save(folder / "img_emb" / f"img_emb_{i}.npy", array)
    return folder


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ([np.zeros((2, 4))], "img_emb_0.npy: float16 or float32 [n, 4] row by row is needed, got float64 [2, 4]"),
        ([np.zeros(4, np.float32)], "img_emb_0.npy: float16 or float32 [n, 4] row by row is needed, got float32 [4]"),
        (
            [np.zeros((2, 4), np.float32), np.zeros((2, 5), np.float32)],
            "img_emb_1.npy: float16 or float32 [n, 4] row by row is needed, got float32 [2, 5]",
        ),
        (
            [np.zeros((4, 3), np.float32).T],
            "img_emb_0.npy: float16 or float32 [n, 4] row by row is needed, got float32 [3, 4], column by column",
        ),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path: Path, arrays: list[np.ndarray], told: str) -> None:
    with pytest.raises(UserError) as error:
        Vectors(_save(tmp_path / "v", *arrays))
    assert str(error.value) == f"{tmp_path / 'v' / 'img_emb'}/{told}"


def test_what_is_no_vectors_folder_is_told(tmp_path: Path) -> None:
    made_by = "`clipkit embed MODEL SOURCE --out VECTORS` makes one"
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "embed.json").write_text("{}")
    for name, told in (
        ("none", f"no such folder; {made_by}"),
        (".", f"neither img_emb/ nor text_emb/ holds a .npy; {made_by}"),
        ("cut", "its embedding was cut short; the same `clipkit embed` again goes on with it"),
    ):
        with pytest.raises(UserError) as error:
            Vectors(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {told}"


def test_what_disagrees_is_told(tmp_path: Path) -> None:
    folder = laying.ours(tmp_path / "v", (3, 2))
    np.save(folder / "text_emb" / "text_emb_000001.npy", laying.rows(1))
    with pytest.raises(UserError) as error:
        Vectors(folder)
    lengths = "{'image': [3, 2], 'text': [3, 1]}"
    assert str(error.value) == f"{folder}: the parts of img_emb/ and text_emb/ have other numbers of rows: {lengths}"
    folder = laying.ours(tmp_path / "w", (3, 2), rows=6)
    with pytest.raises(StorageError) as fault:
        Vectors(folder)
    assert str(fault.value) == f"{folder}: 5 rows, 6 by its vectors.json; embed again"


def test_damage_is_told(tmp_path: Path) -> None:
    folder = laying.ours(tmp_path / "v", (3,))
    part = folder / "img_emb" / "img_emb_000000.npy"
    opened, whole = Vectors(folder), part.read_bytes()
    part.write_bytes(whole[:-10])
    with pytest.raises(StorageError, match=f"^{part}: cut short; embed again$"):
        opened.take("image", np.arange(3))
    for content in (whole[:-10], b"junk", b""):
        part.write_bytes(content)
        with pytest.raises(StorageError, match=f"^{part}: not a readable array of numbers"):
            Vectors(folder)
    part.write_bytes(whole)
    (folder / "vectors.json").write_text("{")
    with pytest.raises(StorageError, match=f"^{folder}/vectors.json: damaged"):
        Vectors(folder)


def test_metadata_that_does_not_fit_is_told(tmp_path: Path) -> None:
    folder = laying.ours(tmp_path / "v", (3, 2))
    assert Vectors(folder).column("key") == [f"k{i}" for i in range(5)]
    (folder / "metadata" / "metadata_000001.parquet").unlink()
    with pytest.raises(UserError) as error:
        _ = Vectors(folder).metadata_files
    assert str(error.value) == f"{folder}: 5 embeddings but metadata of 3; embed again"
    (folder / "metadata" / "metadata_000000.parquet").unlink()
    with pytest.raises(UserError) as error:
        _ = Vectors(folder).metadata_files
    assert str(error.value) == f"{folder}: metadata/ is missing or empty, and says what each row is; embed again"


def test_an_opened_folder_keeps_no_file_open(tmp_path: Path) -> None:
    """A collection may have more parts than a process may have files open."""
    before = len(os.listdir("/proc/self/fd"))
    vectors = Vectors(laying.ours(tmp_path / "v", (2,) * 20))
    some = np.arange(0, 40, 3)[::-1]
    wanted = laying.rows(40)[some].astype(np.float16).astype(np.float32)
    assert np.array_equal(vectors.take("image", some), wanted)
    pairs = np.repeat(some, 2)  # rows of a file that do not follow each other
    assert np.array_equal(vectors.take("image", pairs), np.repeat(wanted, 2, axis=0))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_part_that_lacks_on_one_side_only_is_named(tmp_path: Path) -> None:
    place = laying.ours(tmp_path / "v", (2, 2, 2))
    (place / "img_emb" / "img_emb_000001.npy").unlink()
    (place / "text_emb" / "text_emb_000002.npy").unlink()  # as many rows as there, but of other samples
    with pytest.raises(UserError) as error:
        Vectors(place)
    assert str(error.value) == f"{place}: img_emb/ or text_emb/ lacks the part 1; embed again"


def test_nothing_pickled_is_read(tmp_path: Path) -> None:
    folder = _save(tmp_path / "v", np.array([{"a": 1}], dtype=object))
    with pytest.raises(StorageError, match="not a readable array of numbers"):
        Vectors(folder)
