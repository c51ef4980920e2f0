"""Several vectors folders as one: the same rows and metadata as one folder of all, and of a choice those chosen."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.errors import UserError
from clipkit.vectors import Vectors, joined
from clipkit.vectors.joined import Joined, write_metadata
from tests.vectors import laying


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of 5, 1 and 7 rows in several parts, with keys k0..k12."""
    place = tmp_path_factory.mktemp("three")
    return [
        laying.ours(place / "a", (3, 2), seed=1),
        laying.ours(place / "b", (1,), seed=2, first=5),
        laying.ours(place / "c", (0, 4, 3), seed=3, first=6),
    ]


@given(kept=st.none() | st.sets(st.integers(0, 12)), block=st.integers(1, 20))
def test_joined_rows_are_those_of_the_folders_behind_each_other(
    three: list[Path], kept: set[int] | None, block: int
) -> None:
    every = {kind: np.concatenate([Vectors(f).take(kind, np.arange(len(Vectors(f)))) for f in three])
             for kind in ("image", "text")}  # fmt: skip
    chosen = np.arange(13) if kept is None else np.array(sorted(kept), np.int64)
    source = Joined(three, None if kept is None else chosen)
    assert len(source) == len(chosen) and source.kinds == ("image", "text") and source.width == laying.WIDTH
    for kind in source.kinds:
        blocks = list(source.blocks(kind, rows=block))
        assert [first for first, _ in blocks] == list(range(0, len(chosen), block))
        assert np.array_equal(np.concatenate([rows for _, rows in blocks] or [every[kind][:0]]), every[kind][chosen])
        numbers, some = source.sample(kind, 4, seed=1)
        assert len(numbers) == min(4, len(chosen)) and np.array_equal(some, every[kind][chosen[numbers]])
    assert source.column("key") == [f"k{i}" for i in chosen]
    assert source.column("nothing") == [None] * len(chosen)
    assert [folder["rows"] for folder in source.folders] == [5, 1, 7]


@pytest.mark.parametrize("kept", [None, np.array([0, 4, 5, 12])])
def test_metadata_is_written_in_the_order_of_the_rows(
    three: list[Path], tmp_path: Path, kept: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joined, "BLOCK", 2)
    count = write_metadata(Joined(three, kept), tmp_path / "m", 9)
    files = sorted((tmp_path / "m").iterdir())
    assert len(files) == count and files[0].name == "metadata_000009.parquet"
    keys = [key for path in files for key in pq.read_table(path)["key"].to_pylist()]
    assert keys == [f"k{i}" for i in (range(13) if kept is None else kept)]


def test_metadata_of_more_than_ten_unpadded_parts_keeps_its_order(tmp_path: Path) -> None:
    source = Joined([laying.theirs(tmp_path / "v", (1,) * 12)])
    write_metadata(source, tmp_path / "m")
    files = sorted((tmp_path / "m").glob("*.parquet"))
    assert [pq.read_table(path)["caption"][0].as_py() for path in files] == [f"c{i}" for i in range(12)]


def test_folders_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    a = laying.ours(tmp_path / "a", (2,))
    narrow = laying.ours(tmp_path / "narrow", (2,), image=laying.rows(2, width=8))
    other = laying.ours(tmp_path / "other", (2,), digest="f" * 16, model="n")
    only = laying.ours(tmp_path / "only", (2,), text=False)
    for folder, message in (
        (narrow, f"{narrow}: width 8, that of {a} is 16; embed both with one model"),
        (
            other,
            f"{other}: made by another model (n) than {a} (m), their rows cannot be compared; embed with one model",
        ),
    ):
        with pytest.raises(UserError) as error:
            Joined([a, folder])
        assert str(error.value) == message
    assert Joined([a, only]).kinds == ("image",)
    for path in (a / "img_emb").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="^no kind of vectors is in all of the folders: "):
        Joined([a, only])
    with pytest.raises(UserError, match=f"^{only}: of its 2 rows, numbers up to 2 are wanted"):
        Joined([only], np.array([0, 2]))


def test_a_folder_that_does_not_name_its_model_goes_with_any(tmp_path: Path) -> None:
    folders = [laying.ours(tmp_path / "a", (2,)), laying.theirs(tmp_path / "b", (3,))]
    assert len(Joined(folders)) == 5
