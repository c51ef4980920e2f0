"""One of each group of duplicates stays, by bytes, vectors or a model; what another set has goes; and every refusal."""

import builtins
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipkit import shards
from clipkit.datatools.curate.dedup import dedup
from clipkit.datatools.curate.filter import filter
from clipkit.errors import StorageError, UserError
from clipkit.vectors import groups_picture, near
from tests import making
from tests.datatools.curating import BROKEN, angles, kept, one, trained_on, vectors_of, write
from tests.samples import encoded, shape

# By bytes


def same(folder: Path) -> str:
    """Pictures 0 0 1 0 | 1 2 broken broken, the last two of the same bytes."""
    first = [one(i, caption="c", of=of) for i, of in enumerate([0, 0, 1, 0])]
    second = [one(4, caption="c", of=1), one(5, caption="", of=2)]
    return write(folder, first, second + [one(i, caption="c", picture=BROKEN) for i in (6, 7)])


def test_of_the_same_bytes_the_first_stays(tmp_path: Path) -> None:
    source, out = same(tmp_path / "s"), str(tmp_path / "sel")
    facts = dedup(source, out, exact=True)
    assert kept(out) == ["00000", "00002", "00005"]  # an empty caption is none of its business
    assert facts == {
        "of": 8, "kept": 3, "dropped": {"duplicate": 3, "unreadable: not a picture": 2}, "left_out": {}, "out": out,
        "groups": 2, "largest_group": 3, "search": "bytes of the pictures", "picture": None,
    }  # fmt: skip
    about = json.loads(pq.read_schema(out).metadata[b"clipkit"])
    assert (about["command"], about["exact"], about["threshold"], about["keep"]) == ("dedup", True, None, "first")


def test_filter_and_dedup_compose_either_way_and_train(tmp_path: Path) -> None:
    source = same(tmp_path / "s")
    filter(source, str(tmp_path / "one"), where="number > 0")
    dedup(source, str(tmp_path / "two"), exact=True, select=str(tmp_path / "one"))
    assert kept(tmp_path / "two") == trained_on(source, tmp_path / "two") == ["00001", "00002"]
    dedup(source, str(tmp_path / "three"), exact=True)
    filter(source, str(tmp_path / "four"), where="number > 0", select=str(tmp_path / "three"))
    assert kept(tmp_path / "four") == trained_on(source, tmp_path / "four") == ["00002"]


@pytest.mark.parametrize("form", ["shards", "folder"])
def test_against_the_same_bytes_of_another_set(tmp_path: Path, form: str) -> None:
    source, other = same(tmp_path / "s"), tmp_path / "other"
    if form == "shards":
        write(other, [one(0, caption="c", of=1), one(1, picture=BROKEN), one(2, of=9)])
    else:
        other.mkdir()
        (other / "a.jpg").write_bytes(encoded(shape(1)[0]))
    facts = dedup(source, str(tmp_path / "sel"), exact=True, against=str(other))
    assert kept(tmp_path / "sel") == ["00000", "00001", "00003", "00005"]
    assert facts["dropped"] == {f"in {other}": 2, "unreadable: not a picture": 2} and "groups" not in facts


# By vectors


@pytest.fixture
def six(tmp_path: Path) -> str:
    """Six samples whose pictures grow and then shrink."""
    sizes = [(40, 30), (60, 40), (80, 50), (60, 60), (50, 20), (30, 30)]
    samples = [one(i, *size, caption=f"c {i}") for i, size in enumerate(sizes)]
    return write(tmp_path / "s", samples[:4], samples[4:])


def turned(source: str, out: Path, **more: Any) -> str:
    """Vectors at 0, 8, 16 (a chain), 90, 92 and 180 degrees; captions at 5 degrees from 2 and 4, far from others."""
    return vectors_of(source, out, angles(0, 8, 16, 90, 92, 180), angles(60, 60, 21, 180, 97, 0), **more)


@pytest.mark.parametrize(
    ("threshold", "keep", "wanted", "largest"),
    [
        (0.99, "first", [0, 3, 5], 3),  # cosines of 8 degrees .9903, of 16 .961, of 2 .9994
        (0.995, "first", [0, 1, 2, 3, 5], 2),
        (0.9999, "first", [0, 1, 2, 3, 4, 5], 0),
        (0.99, "largest", [2, 3, 5], 3),
        (0.99, "best", [2, 4, 5], 3),
        (0.05, "first", [0, 5], 5),  # 16 and 90 degrees are near enough for a chain
    ],
)
def test_of_a_chain_one_stays_by_rule(
    tmp_path: Path, six: str, threshold: float, keep: Any, wanted: list[int], largest: int
) -> None:
    folder = turned(six, tmp_path / "v")
    facts = dedup(six, str(tmp_path / "sel"), vectors=folder, threshold=threshold, keep=keep)
    assert [int(key) for key in kept(tmp_path / "sel")] == wanted and facts["largest_group"] == largest
    assert facts["kept"] + sum(facts["dropped"].values()) == facts["of"] == 6 and facts["search"] == "all pairs"


def test_vectors_that_are_missing_drop_their_samples(tmp_path: Path, six: str) -> None:
    folder = vectors_of(six, tmp_path / "v", angles(0, 0, 90), numbers=[1, 3, 5], left_out={"broken picture": 3})
    facts = dedup(six, str(tmp_path / "sel"), vectors=folder, select=None)
    assert kept(tmp_path / "sel") == ["00001", "00005"] and facts["dropped"] == {"duplicate": 1, "no vector": 3}


def test_the_threshold_of_one_finds_the_same_direction(tmp_path: Path, six: str) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 300))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    folder = vectors_of(six, tmp_path / "v", np.concatenate([rows, 1.01 * rows]))  # as rounding leaves them
    facts = dedup(six, str(tmp_path / "sel"), vectors=folder, threshold=1)
    assert facts["groups"] == 3 and kept(tmp_path / "sel") == ["00000", "00001", "00002"]


def test_against_the_vectors_of_another_set(tmp_path: Path, six: str) -> None:
    folder = turned(six, tmp_path / "v", digest="1")
    other = write(tmp_path / "t", [one(0), one(1)])
    test = vectors_of(other, tmp_path / "test", angles(4, 175))
    facts = dedup(six, str(tmp_path / "sel"), vectors=folder, threshold=0.995, against=test)
    # 4 is at 4, 4 and 12 degrees of the first three, 175 at 5 of the last; .9976 .9976 .978 .9962
    assert [int(key) for key in kept(tmp_path / "sel")] == [2, 3, 4]
    assert facts["dropped"] == {f"near to {test}": 3} and facts["search"] == "all pairs"
    foreign = vectors_of(other, tmp_path / "foreign", angles(4, 175), model="n", digest="2")
    with pytest.raises(UserError) as error:
        dedup(six, str(tmp_path / "new"), vectors=folder, against=foreign)
    wanted = (
        f"{foreign}: made by another model (n) than {folder} (m), their rows cannot be compared; embed with one model"
    )
    assert str(error.value) == wanted
    os.makedirs(tmp_path / "none/img_emb")
    np.save(tmp_path / "none/img_emb/img_emb_0.npy", angles().astype(np.float32))
    with pytest.raises(UserError, match="none: img_emb/ holds no embeddings; embed again$"):
        dedup(six, str(tmp_path / "new"), vectors=folder, against=str(tmp_path / "none"))


def test_one_sample_is_no_group(tmp_path: Path) -> None:
    source = write(tmp_path / "s", [one(0)])
    folder = vectors_of(source, tmp_path / "v", angles(0))
    for i, how in enumerate(({"exact": True}, {"vectors": folder}, {"vectors": folder, "keep": "largest"})):
        facts = dedup(source, str(tmp_path / f"sel{i}"), **how)
        assert (facts["kept"], facts["groups"], facts["largest_group"]) == (1, 0, 0)


# By a model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return making.saved(tmp_path_factory.mktemp("model"))


def test_a_model_sees_through_another_encoding(tmp_path: Path, model: str) -> None:
    image, other = shape(0, 64, 64)[0], shape(20, 64, 64)[0]
    cut = encoded(other)[:-300]
    pictures = [encoded(image, quality=95), encoded(other), encoded(image, quality=90), encoded(image, "PNG"), cut]
    samples = [one(i, picture=data) for i, data in enumerate(pictures)]
    source = write(tmp_path / "s", samples)
    assert dedup(source, str(tmp_path / "exact"), exact=True)["kept"] == 5  # a header tells nothing of the pixels
    facts = dedup(source, str(tmp_path / "sel"), model=model, threshold=0.999, workers=0)
    assert kept(tmp_path / "sel") == ["00000", "00001"]
    assert facts["dropped"] == {"duplicate": 2, "unreadable: broken picture": 1} and facts["largest_group"] == 3
    best = dedup(source, str(tmp_path / "best"), model=model, threshold=0.999, keep="best", workers=0)
    assert best["kept"] == 2 and kept(tmp_path / "best") == ["00000", "00001"]  # no captions: of equals the first


@pytest.mark.parametrize("form", ["shards", "folder"])
def test_against_another_set_by_a_model(
    tmp_path: Path, model: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [shape(number, 64, 64)[0] for number in (0, 9, 20)]
    source = write(tmp_path / "s", [one(i, picture=encoded(image)) for i, image in enumerate(images)])
    other = tmp_path / "t"
    if form == "shards":
        write(other, [one(0, picture=BROKEN), one(1, picture=encoded(images[1], quality=90))])
    else:
        other.mkdir()
        (other / "a.jpg").write_bytes(BROKEN)
        (other / "b.png").write_bytes(encoded(images[1], "PNG"))
    facts = dedup(source, str(tmp_path / "sel"), model=model, threshold=0.999, against=str(other), workers=0)
    assert kept(tmp_path / "sel") == ["00000", "00002"] and facts["dropped"] == {f"near to {other}": 1}
    assert f"{other}: 1 pictures cannot be read and are compared with nothing" in capsys.readouterr().err
    alone = write(tmp_path / "u", [one(0, picture=BROKEN)])
    with pytest.raises(UserError) as error:
        dedup(source, str(tmp_path / "new"), model=model, against=alone, workers=0)
    wanted = f"{alone}: no picture of it can be read, so that nothing can be told apart from it"
    assert str(error.value) == wanted


# The picture


def test_a_picture_shows_the_groups(tmp_path: Path) -> None:
    source, out = same(tmp_path / "s"), tmp_path / "deep" / "groups.png"
    facts = dedup(source, str(tmp_path / "sel"), exact=True, picture=str(out))
    assert facts["picture"] == str(out) and [path.name for path in out.parent.iterdir()] == ["groups.png"]
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 400
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (np.abs(pixels - [0x1A, 0x7F, 0x37]).sum(2) < 30).any()  # the word of the kept one
    image = shards.Shards(source).image
    groups_picture.draw([[6, *range(7), 7]], "one", str, image, str(tmp_path / "long.png"))
    groups_picture.draw([], "none", str, image, str(tmp_path / "none.png"))
    with pytest.raises(StorageError, match="sel/x.png: cannot be written"):
        groups_picture.draw([], "none", str, image, f"{tmp_path}/sel/x.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def no_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return usual(name, *args, **kwargs)

    source = same(tmp_path / "s")
    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(UserError, match=r"^--picture is drawn by matplotlib; type: pip install 'clipkit\[demo\]'$"):
        dedup(source, str(tmp_path / "sel"), exact=True, picture=str(tmp_path / "x.png"))
    assert not (tmp_path / "sel").exists()


# Refusals


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "dedup: one of --exact, --model MODEL and --vectors FOLDER is needed"),
        ({"exact": True, "model": "m"}, "dedup: one of --exact, --model MODEL and --vectors FOLDER is needed"),
        ({"model": "m", "threshold": 95}, "--threshold: a cosine above 0 and up to 1 is needed, got 95"),
        ({"model": "m", "keep": "last"}, "--keep: one of first, largest, best is needed, got 'last'"),
        (
            {"exact": True, "keep": "best"},
            "--keep best: is by a model's scores; give --model or --vectors in place of --exact",
        ),
        (
            {"exact": True, "against": "t", "picture": "p.png"},
            "--against: removes all that the other set has, and no groups; leave --keep and --picture out",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        dedup("nowhere", str(tmp_path / "sel"), **given)
    assert str(error.value) == message


def test_missing_captions_are_told_before_the_work(tmp_path: Path, six: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = vectors_of(six, tmp_path / "v", angles(0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(near, "groups", None)
    with pytest.raises(UserError, match="was made with no captions, --caption txt is asked for; embed again with it$"):
        dedup(six, str(tmp_path / "sel"), vectors=folder, keep="best")


def test_a_set_against_itself_keeps_nothing_and_says_so(tmp_path: Path, six: str) -> None:
    with pytest.raises(UserError) as error:
        dedup(six, str(tmp_path / "sel"), exact=True, against=six)
    wanted = f"{six}: none of 6 samples would be kept (in {six}: 6); nothing is written"
    assert str(error.value) == wanted and not (tmp_path / "sel").exists()


def test_what_exists_is_left_as_it_is(tmp_path: Path, six: str) -> None:
    (tmp_path / "sel").write_text("mine")
    with pytest.raises(UserError, match="sel: already exists and is left as it is; remove it, or give another name$"):
        dedup(six, str(tmp_path / "sel"), exact=True)
    with pytest.raises(UserError, match="sel: already exists and is left as it is; remove it, or give another name$"):
        dedup(six, str(tmp_path / "new"), exact=True, picture=str(tmp_path / "sel"))
    assert (tmp_path / "sel").read_text() == "mine"
