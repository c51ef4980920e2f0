"""The report of the quickstart shows what plain arithmetic over the vectors gives. (All of it runs in test_docs.py.)"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit import quickstart
from clipkit.errors import ClipkitError, UserError
from clipkit.quickstart import gallery

ROWS = 9


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A vectors folder of two parts: captions near their pictures, but that of row 3 is missing."""
    draw = np.random.default_rng(0)
    image = unit(draw.standard_normal((ROWS, 8)))
    text = unit(image + 0.2 * draw.standard_normal((ROWS, 8)))
    text[3] = 0
    records = [{"caption": f"number {i}", "shard": "s.tar", "offset": i, "size": 1} for i in range(ROWS)]
    for part, rows in enumerate((slice(0, 5), slice(5, ROWS))):
        for name, array in (("img_emb", image), ("text_emb", text)):
            (tmp_path / name).mkdir(exist_ok=True)
            np.save(tmp_path / name / f"{name}_{part:06d}.npy", array[rows].astype(np.float32))
        (tmp_path / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(records[rows]), tmp_path / "metadata" / f"metadata_{part:06d}.parquet")
    return tmp_path


def test_pictures_come_with_the_three_nearest_captions(folder: Path) -> None:
    names = ("img_emb", "text_emb")
    image, text = (np.concatenate([np.load(f) for f in sorted((folder / name).iterdir())]) for name in names)
    found = gallery.captions_found(folder, shown=4)
    assert [item["record"]["offset"] for item in found] == [0, 2, 5, 8]
    for item in found:
        scores = image[item["record"]["offset"]] @ text.T
        scores[3] = -np.inf  # no caption
        assert item["captions"] == [f"number {i}" for i in np.argsort(-scores)[:3]]


def test_a_gallery_says_which_captions_are_right(folder: Path, tmp_path: Path) -> None:
    hit = {"score": 0.5, "caption": "a find", "shard": "s.tar", "offset": 1, "size": 2, "key": "k"}
    written = json.loads(gallery.write(tmp_path / "gallery.json", folder, [("words", [hit])]).read_text())
    pictures, asked = written["rows"]
    right = [good for picture in pictures["pictures"] for _, good in picture["lines"] if good]
    assert len(pictures["pictures"]) == 6 and 4 <= len(right) <= 6
    assert asked["title"] == "Search: words" and asked["pictures"][0]["lines"] == [["0.500 a find", None]]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="not of an earlier quickstart; give another folder with --out"):
        quickstart.run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_step_that_fails_ends_it_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(ClipkitError, match="quickstart stopped: `clipkit data openmoji .*` ended with exit code 1"):
        quickstart.run(tmp_path / "out")
