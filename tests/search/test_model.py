"""Words and pictures as queries: what the model says of them is what is searched by, and the model is the right one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit import models
from clipkit.errors import UserError
from clipkit.search import Index, Options, Part, Query, open_index, query
from clipkit.search.query import combined
from tests import making
from tests.search.conftest import PICTURES
from tests.search.given import vectors, write_index


@pytest.fixture(scope="module")
def index(pictured: Path) -> Index:
    return open_index(pictured / "index")


def ids(scores: np.ndarray, k: int) -> list[int]:
    return np.argsort(-scores, kind="stable")[:k].tolist()


def test_words_find_what_the_model_says(index: Index) -> None:
    rows = index.stored.rows("image", np.arange(PICTURES))
    word = models.embed_texts(index.model, ["a red square"]).numpy()[0]
    found = index.search(text="a red square", k=7)
    assert [hit.id for hit in found] == ids(rows @ word, 7)
    np.testing.assert_allclose([hit.score for hit in found], np.sort(rows @ word)[::-1][:7], atol=1e-5)


def test_a_picture_finds_itself_by_its_file_and_by_its_bytes(index: Index, pictured: Path) -> None:
    path = pictured / "pictures/03.jpg"
    by_file, by_bytes = index.search(image=path, k=4), index.search(image=path.read_bytes(), k=4)
    assert by_file == by_bytes == index.search(image=str(path), k=4)
    assert by_file[0].key == "03" and by_file[0].score == pytest.approx(1, abs=1e-5)
    assert by_file[0].image() == path.read_bytes() and by_file[0].fields["width"] == 48
    assert by_file[0].caption == making.picture(3)[1]


def test_words_find_captions(index: Index) -> None:
    caption = making.picture(5)[1]
    hit = index.search(text=caption, k=1, kind="text")[0]
    assert hit.caption == caption and hit.score == pytest.approx(1, abs=1e-5)


def test_parts_together_are_combined_over_rows_of_the_index(index: Index, pictured: Path) -> None:
    path = pictured / "pictures/04.jpg"
    ((_, seen, _),) = models.embed_images(index.model, _One(path.read_bytes()), [0])
    words = models.embed_texts(index.model, ["a red dot", "a square"]).numpy()
    own = index.stored.rows("image", np.array([8]))[0]
    asked = query("a red dot", path, "08", without="a square", weights=[1, 2, 3, 0.5])
    wanted = combined([words[0], seen.numpy()[0], own, words[1]], [1, 2, 3, -0.5], None)  # too few rows to weigh by
    np.testing.assert_allclose(index.embed([asked])[0], wanted, atol=1e-5)
    hits = index.search_many([asked], Options(PICTURES))[0]
    assert len(hits) == PICTURES - 1 and "08" not in [hit.key for hit in hits]
    assert hits == index.search("a red dot", path, "08", without="a square", weights=[1, 2, 3, 0.5], k=PICTURES)


def test_what_is_not_wanted_may_be_a_picture(index: Index, pictured: Path) -> None:
    path = pictured / "pictures/04.jpg"
    asked = Query((Part("id", 9), Part("image", path, -1.0)))
    nine, four = index.stored.rows("image", np.array([9, 4]))
    np.testing.assert_allclose(index.embed([asked])[0], combined([nine, four], [1, -1], None), atol=1e-4)


class _One:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def image(self, number: int) -> bytes:
        return self.data


def test_many_texts_and_pictures_equal_one_by_one(index: Index, pictured: Path) -> None:
    queries = [query(text=f"a dot, number {i}") for i in range(5)]
    queries += [query("a dot", pictured / f"pictures/{i:02d}.jpg", without="red") for i in range(5)]
    many = index.embed(queries)
    for row, each in zip(many, queries, strict=True):
        np.testing.assert_allclose(row, index.embed([each])[0], atol=1e-5)


def test_a_picture_that_cannot_be_read_costs_no_other_query(index: Index, pictured: Path, tmp_path: Path) -> None:
    broken, text = tmp_path / "broken.jpg", tmp_path / "text.jpg"
    broken.write_bytes((pictured / "pictures/01.jpg").read_bytes()[:-300])
    text.write_text("words")
    good = pictured / "pictures/01.jpg"
    asked = [query(image=each) for each in (broken, text, tmp_path / "none.jpg", tmp_path, b"", good)]
    rows = index.embed_each(asked)
    assert [str(row) for row in rows[:5]] == [
        f"{broken}: broken picture",
        f"{text}: not a picture; JPEG, PNG, WebP, GIF and BMP pictures can be read",
        f"{tmp_path / 'none.jpg'}: no such file",
        f"{tmp_path}: a folder; one picture is needed",
        "the picture: not a picture; JPEG, PNG, WebP, GIF and BMP pictures can be read",
    ]
    np.testing.assert_allclose(rows[5], index.embed([asked[5]])[0], atol=1e-6)
    with pytest.raises(UserError, match=r"broken.jpg: broken picture"):
        index.search(image=[good, broken])


def test_a_picture_too_large_to_be_one_is_not_read(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(UserError, match=r"large.jpg: image too large"):
        index.search(image=path)


def told(folder: Path, model: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        open_index(folder, model).search(text="a dot")
    return str(error.value)


def changed(pictured: Path, folder: Path, **about: object) -> Path:
    """The index with other facts in its index.json."""
    shutil.copytree(pictured / "index", folder)
    facts = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**facts, **about}))
    return folder


def test_another_model_of_the_same_name_is_refused(pictured: Path, tmp_path: Path) -> None:
    name, now = str(pictured / "run"), models.Named(str(pictured / "run")).identity
    folder = changed(pictured, tmp_path / "i", digest="0123456789abcdef")
    assert told(folder) == (
        f"{folder}: its vectors were made by another model than {name} is now (0123456789abcdef then, {now} now); "
        "give that of then with --model, or embed and index again"
    )
    assert open_index(folder).search(id=1)  # which needs no model
    assert len(open_index(changed(pictured, tmp_path / "j", digest=None)).search(text="a dot")) == 5


def test_a_model_that_has_moved_is_given_by_its_new_place(pictured: Path, tmp_path: Path) -> None:
    folder = changed(pictured, tmp_path / "i", model=str(tmp_path / "gone"))
    said = told(folder)
    assert said.startswith(
        f"{folder}: its model is not to be had ({tmp_path / 'gone'}: no such run or checkpoint folder"
    )
    assert said.endswith("; say with --model where it is")
    found = open_index(folder, str(pictured / "run")).search(text="a dot")
    assert found == open_index(pictured / "index").search(text="a dot")
    assert told(folder, str(tmp_path / "nor")).startswith(f"{tmp_path / 'nor'}: no such run or checkpoint folder")


def test_vectors_of_another_tool_need_a_model_named(pictured: Path, tmp_path: Path) -> None:
    folder = changed(pictured, tmp_path / "i", model=None, digest=None)
    assert told(folder) == f"{folder}: does not say by which model its vectors were made; name it with --model"
    assert len(open_index(folder, str(pictured / "run")).search(text="a dot")) == 5


def test_a_model_of_another_width_is_refused(pictured: Path, tmp_path: Path) -> None:
    folder = write_index(tmp_path / "i", {"image": vectors(9)}, model=str(pictured / "run"))
    assert told(folder) == f"{pictured / 'run'}: makes vectors of 16 numbers, the index has 12"


def test_a_model_that_gives_no_numbers_says_so(pictured: Path) -> None:
    index = open_index(pictured / "index")
    with torch.no_grad():
        for weights in index.model.net.parameters():
            weights.fill_(float("nan"))
    with pytest.raises(UserError, match=r"^text 'a dot': its embedding is not finite; the model is damaged$"):
        index.search(text="a dot")
    with pytest.raises(UserError, match=r"^the picture: its embedding is not finite; the model is damaged$"):
        index.search(image=(pictured / "pictures/01.jpg").read_bytes())


def test_a_model_is_the_same_wherever_it_lies(pictured: Path, tmp_path: Path) -> None:
    shutil.copytree(pictured / "run", tmp_path / "elsewhere")
    one, two = (models.Named(str(path), "cpu") for path in (pictured / "run", tmp_path / "elsewhere"))
    assert one.identity == two.identity and len(one.identity) == 16
