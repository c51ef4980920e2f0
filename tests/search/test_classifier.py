"""Words for pictures: probabilities that are a softmax over cosines, and pictures that cannot be read cost no other."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import clipkit
from clipkit import classifier, cli, models, shards
from clipkit.errors import BadData, UserError
from tests.search.conftest import PICTURES

NAMES = ["red square", "blue dot", "green stripe"]


@pytest.fixture(scope="module")
def model(pictured: Path) -> models.DualEncoder:
    return clipkit.load(str(pictured / "run"))


@pytest.fixture
def broken(pictured: Path, tmp_path: Path) -> Path:
    """A folder with a picture, a broken one, and another picture."""
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        data = (pictured / f"pictures/0{number}.jpg").read_bytes()
        (tmp_path / name).write_bytes(data[:-300] if name == "b.jpg" else data)
    return tmp_path


def test_probabilities_are_a_softmax_over_the_scaled_cosines(pictured: Path, model: models.DualEncoder) -> None:
    folder = pictured / "pictures"
    found = classifier.classify(model, [str(folder)], NAMES, ["a {c}"], top=3)
    words = models.embed_texts(model, [f"a {name}" for name in NAMES]).numpy()
    for number, row in enumerate(found):
        assert row["image"] == str(folder / f"{number:02d}.jpg")
        ((_, seen, _),) = models.embed_images(model, shards.open_source(str(folder)), [number])
        scores = np.exp(10 * (seen.numpy()[0] @ words.T).astype(np.float64))
        wanted = dict(zip(NAMES, scores / scores.sum(), strict=True))
        assert row["scores"] == pytest.approx(wanted, abs=1e-5)
        assert list(row["scores"].values()) == sorted(row["scores"].values(), reverse=True)
    assert len(found) == PICTURES


def test_one_picture_and_names_in_one_text_are_taken_as_such(pictured: Path, model: models.DualEncoder) -> None:
    path = pictured / "pictures/03.jpg"
    one = clipkit.classify(model, path, "red square, blue dot,,green stripe,blue dot")
    assert one == clipkit.classify(model, str(path), NAMES) == clipkit.classify(str(pictured / "run"), [path], NAMES)
    assert len(one) == 1 and set(one[0]["scores"]) == set(NAMES)
    assert list(clipkit.classify(model, path, NAMES, top=1)[0]["scores"]) == list(one[0]["scores"])[:1]


def test_probabilities_of_no_picture_are_none(model: models.DualEncoder) -> None:
    words = classifier.words_of(model, NAMES)
    assert classifier.probabilities(model, torch.empty(0, model.width), words).shape == (0, 3)


def test_a_bad_picture_is_told_and_the_others_are_classified(
    broken: Path, model: models.DualEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    found = classifier.classify(model, broken, NAMES)
    assert [Path(row["image"]).name for row in found] == ["a.jpg", "b.jpg", "c.jpg"]
    assert found[1] == {"image": str(broken / "b.jpg"), "scores": {}, "error": "broken picture"}
    assert [found[0], found[2]] == classifier.classify(model, [broken / "a.jpg", broken / "c.jpg"], NAMES)
    assert capsys.readouterr().err == (
        f"{broken / 'b.jpg'}: broken picture\n"
        "1 of 3 pictures cannot be read; JPEG, PNG, WebP, GIF and BMP pictures can be read\n"
    )


def test_if_all_are_bad_it_is_an_error(broken: Path, model: models.DualEncoder) -> None:
    with pytest.raises(BadData) as error:
        classifier.classify(model, broken / "b.jpg", NAMES)
    assert str(error.value) == "1 of 1 pictures cannot be read; JPEG, PNG, WebP, GIF and BMP pictures can be read"


def test_the_command_ends_well_with_one_bad_picture_and_with_3_if_all_are(
    broken: Path, pictured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for files, code, lines in (([broken], 0, 3), ([broken / "b.jpg"], 3, 0)):
        arguments = ["clipkit", "classify", str(pictured / "run"), *map(str, files), "--classes", "a,b", "--json"]
        monkeypatch.setattr(sys, "argv", arguments)
        try:
            cli.main()
            ended = 0
        except SystemExit as end:
            ended = int(end.code or 0)
        said = capsys.readouterr()
        assert ended == code and len([json.loads(line) for line in said.out.splitlines()]) == lines
        assert "pictures cannot be read" in said.err


@pytest.mark.parametrize(
    ("pictures", "classes", "message"),
    [
        ([], NAMES, "no pictures given; name files or folders"),
        ("pictures", " , ,", "classes: at least one name is needed, as in --classes 'cat,dog,bird'"),
        ("pictures", [], "classes: at least one name is needed"),
        ("none.jpg", NAMES, "none.jpg: no such file"),
    ],
)
def test_what_is_missing_is_named(
    pictured: Path,
    model: models.DualEncoder,
    monkeypatch: pytest.MonkeyPatch,
    pictures: str,
    classes: str,
    message: str,
) -> None:
    monkeypatch.chdir(pictured)
    with pytest.raises(UserError) as error:
        classifier.classify(model, pictures, classes)
    assert str(error.value).startswith(message)
