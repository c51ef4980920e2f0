"""Three commands, without an option but the places: from a folder as people have them to an answer."""

import json
import subprocess
from pathlib import Path

import pytest

import clipkit
from tests import making, samples

PICTURES = {
    "beach.jpg": "JPEG", "2024/may/cat.png": "PNG", "2024/may/dog.webp": "WEBP", "2024/old scan.bmp": "BMP",
    "2024/ünï côdé.jpg": "JPEG", "2024/.hidden.jpg": None,
}  # fmt: skip
CAPTIONS = {"beach": "a red circle on the beach", "2024/may/cat": "two cats\n"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and `photos`: sub-folders, some captions, a broken picture, and what is no picture."""
    folder = tmp_path_factory.mktemp("own")
    assert making.clipkit("train", str(making.recipe(folder, steps=2))).returncode == 0
    photos = folder / "photos"
    for number, (name, form) in enumerate(PICTURES.items()):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(samples.encoded(samples.shape(number)[0], form or "JPEG"))
    for name, text in CAPTIONS.items():
        (photos / f"{name}.txt").write_text(text)
    (photos / "2024/broken.jpg").write_bytes(making.picture(9)[0][:150])
    (photos / "notes.md").write_text("not a picture")
    return folder


def command(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = making.clipkit(*words, cwd=place)
    assert done.returncode == 0 and "Traceback" not in done.stderr, f"{words}: {done.stderr}"
    return done


def test_three_commands_lead_from_a_folder_to_an_answer(place: Path) -> None:
    embedded = command(place, "embed", "run", "photos", "--out", "vectors")
    assert embedded.stdout == "vectors: 5 pictures and 2 captions\n"
    assert "left out" in embedded.stderr and ": 1" in embedded.stderr  # the broken picture, and nothing else
    command(place, "index", "vectors", "--out", "index")
    answer = command(place, "search", "index", "a red circle")
    shown = {name for name, form in PICTURES.items() if form}
    assert len(answer.stdout.splitlines()) == 1 + len(shown)

    index = clipkit.open_index(place / "index")
    hits = index.search(image=place / "photos/2024/may/cat.png", k=20)
    assert len(index) == len(hits) == len(shown)
    assert hits[0].caption == "two cats" and hits[0].score == pytest.approx(1, abs=2e-3)
    assert hits[0].image() == (place / "photos/2024/may/cat.png").read_bytes()
    assert {hit.image() for hit in hits} == {(place / "photos" / name).read_bytes() for name in shown}
    assert sorted(hit.caption for hit in hits if hit.caption) == ["a red circle on the beach", "two cats"]


def test_an_index_that_was_moved_still_answers(place: Path) -> None:
    (place / "index").rename(place / "moved")
    line = command(place, "search", "moved", "a red circle", "-k", "1", "--json").stdout
    assert json.loads(line)["score"] <= 1
