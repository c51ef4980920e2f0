"""Removed keys are found by no search, and what is not there is told."""

from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import UserError
from clipkit.index.build import build
from clipkit.index.remove import remove
from clipkit.vectors import Stored
from tests.vectors import laying


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An index of 100 rows with the keys k0..k49, each twice."""
    folders = [laying.ours(tmp_path / name, seed=i) for i, name in enumerate("ab")]
    build(folders, tmp_path / "i")
    return tmp_path / "i"


def found(place: Path, kind: str = "image") -> set[int]:
    stored = Stored(place)
    return set(stored.nearest(kind, laying.rows(1, 9), len(stored))[1][0].tolist()) - {-1}


def test_all_rows_of_a_key_go(place: Path) -> None:
    told = remove(place, ["k3", "k49", "k3"])
    assert told == {"removed": 4, "all": 4, "unknown": 0}
    for kind in ("image", "text"):
        assert found(place, kind) == set(range(100)) - {3, 49, 53, 99}
    assert remove(place, ["k3", "k4"]) == {"removed": 2, "all": 6, "unknown": 0}
    assert found(place) == set(range(100)) - {3, 4, 49, 53, 54, 99}
    assert len(Stored(place)) == 100
    assert not list(place.glob(".*"))


def test_keys_come_from_a_file_too(place: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("k1\n\nk2\r\nk1\n", encoding="utf-8")
    assert remove(place, [str(keys), "k5"])["removed"] == 6


def test_a_key_that_is_also_a_file_is_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(laying.ours(tmp_path / "a"), tmp_path / "i")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k7").write_bytes(b"\xff\xd8 a picture")
    assert remove("i", ["k7"])["removed"] == 1 and found(tmp_path / "i") == set(range(50)) - {7}


def test_keys_that_are_not_there_are_told(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert remove(place, ["k1", "a", "b", "c", "d"]) == {"removed": 2, "all": 2, "unknown": 4}
    assert f"{place}: 4 of 5 keys are not there: a, b, c, ..." in capsys.readouterr().err
    with pytest.raises(UserError) as error:
        remove(place, ["a", "b"])
    assert str(error.value) == f"{place}: none of the 2 keys is there (a, b); nothing is removed"
    picture, empty = tmp_path / "x.jpg", tmp_path / "empty.txt"
    picture.write_bytes(b"\xff\xd8\xff")
    empty.write_text("\n")
    for path, message in (
        (picture, f"{picture}: neither a key of {place} nor a text file of keys, one a line"),
        (empty, f"{empty}: holds no keys, one a line is needed"),
    ):
        with pytest.raises(UserError) as error:
            remove(place, [str(path)])
        assert str(error.value) == message
    assert found(place) == set(range(100)) - {1, 51}


def test_many_removed_rows_ask_for_a_compact(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove(place, [f"k{i}" for i in range(9)])
    assert "--compact" not in capsys.readouterr().err
    remove(place, ["k10"])
    wanted = f"{place}: 20 of 100 rows are removed; `clipkit index {place} --compact` frees their room"
    assert wanted in capsys.readouterr().err


def test_removing_everything_finds_nothing(place: Path) -> None:
    remove(place, [f"k{i}" for i in range(50)])
    scores, numbers = Stored(place).nearest("image", laying.rows(3), 5)
    assert (numbers == -1).all() and not np.isfinite(scores).any()
