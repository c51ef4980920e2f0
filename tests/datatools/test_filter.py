"""Selections by a condition and by a model's score: hand-worked, composed, trained on; and every refusal."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipkit import models
from clipkit.datatools.curate.conditions import open_samples
from clipkit.datatools.curate.filter import filter
from clipkit.datatools.curate.metadata import table_of
from clipkit.embed import embed
from clipkit.errors import StorageError, UserError
from clipkit.images import eval_view
from clipkit.shards import Shards
from tests import making
from tests.datatools.curating import BROKEN, angles, kept, one, trained_on, vectors_of, write

COLUMNS = (
    "number, shard, key, caption, caption_words, caption_chars, width, height, bytes, format, sha1, problem, "
    "aesthetic, nsfw"
)
NO_SCORE = "; clip_score needs --model or --vectors"


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Eight samples in two shards; number 3 is no picture."""
    first = [
        one(0, 40, 30, "a b c", {"aesthetic": 6.0, "nsfw": False}),
        one(1, 60, 30, "a b c d", {"aesthetic": 5.5}),
        one(2, 80, 30, "a", {"aesthetic": 4.0, "nsfw": True}),
        one(3, 80, 30, "a b c", {"aesthetic": 9.0}, picture=BROKEN),
    ]
    second = [
        one(4, 60, 60, "a b", {"aesthetic": None}),
        one(5, 90, 60, "a b c d e f", {"aesthetic": 7.0, "nsfw": False}),
        one(6, 10, 60, "x y z", {"aesthetic": 8.0, "nsfw": False}),
        one(7, 60, 60, 'it\'s a "b"', None),
    ]
    return write(tmp_path / "s", first, second)


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as error:
        filter(*args, **kwargs)
    assert not Path(args[1]).exists()
    return str(error.value)


def test_a_condition_keeps_what_was_worked_by_hand(tmp_path: Path, source: str) -> None:
    out = str(tmp_path / "deep/sel.parquet")
    facts = filter(source, out, where="width >= 60 and caption_words between 2 and 6 and aesthetic > 5")
    assert kept(out) == ["00001", "00005"]
    assert facts == {
        "of": 8, "kept": 2, "left_out": {}, "out": out, "scores": None, "table": facts["table"],
        "dropped": {"unreadable: not a picture": 1, "where is false": 3, "where is null": 2},
    }  # fmt: skip
    about = json.loads(pq.read_schema(out).metadata[b"clipkit"])
    assert about["where"].startswith("width >= 60") and about["command"] == "filter" and about["source"] == source
    assert about["kept"] == 2 and about["of"] == 8 and about["dropped"] == facts["dropped"]
    assert os.listdir(tmp_path / "deep") == ["sel.parquet"]


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("true", "0124567"),
        ("nsfw", "2"),
        ("not nsfw", "056"),
        ("nsfw is null", "147"),
        ("coalesce(aesthetic, 0) < 5", "247"),
        ("WIDTH * height >= 3600", "457"),
        ("caption like 'a%' -- and more", "01245"),
        ("caption = 'it''s a \"b\"'", "7"),
        ("shard = '001.tar' and key in ('00006', '00000')", "6"),
        ("regexp_matches(caption, '^[a-d ]+$') or format <> 'JPEG'", "0124"),
        ("list_contains([4, 5], number) /* these */", "45"),
    ],
)
def test_conditions_of_many_kinds(tmp_path: Path, source: str, where: str, wanted: str) -> None:
    filter(source, str(tmp_path / "sel"), where=where)
    assert [str(int(key)) for key in kept(tmp_path / "sel")] == list(wanted)


def test_training_on_a_selection_sees_exactly_its_samples(tmp_path: Path, source: str) -> None:
    filter(source, str(tmp_path / "sel"), where="width >= 60")
    assert (
        kept(tmp_path / "sel") == trained_on(source, tmp_path / "sel") == ["00001", "00002", "00004", "00005", "00007"]
    )


def test_selections_compose(tmp_path: Path, source: str) -> None:
    filter(source, str(tmp_path / "one"), where="width >= 60")
    facts = filter(source, str(tmp_path / "two"), where="height >= 60", select=str(tmp_path / "one"))
    filter(source, str(tmp_path / "both"), where="width >= 60 and height >= 60")
    assert kept(tmp_path / "two") == kept(tmp_path / "both") == trained_on(source, tmp_path / "two")
    assert (facts["of"], facts["kept"], facts["dropped"]) == (5, 3, {"where is false": 2})
    assert json.loads(pq.read_schema(tmp_path / "two").metadata[b"clipkit"])["select"] == str(tmp_path / "one")


def test_a_selection_of_shards_that_changed_is_refused(tmp_path: Path, source: str) -> None:
    filter(source, str(tmp_path / "sel"), where="width >= 60")
    os.replace(write(tmp_path / "t", [one(0, caption="c")]) + "/000.tar", source + "/000.tar")
    wanted = f"{tmp_path}/sel: was made when 000.tar had 4 samples, now it has 1; make it again"
    assert refused(source, str(tmp_path / "new"), where="true", select=str(tmp_path / "sel")) == wanted


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("widht > 3", f'Referenced column "widht" not found in FROM clause; the columns are {COLUMNS}'),
        (
            "clip_score > 1",
            f'Referenced column "clip_score" not found in FROM clause; the columns are {COLUMNS}{NO_SCORE}',
        ),
        ("width >", 'syntax error at or near ")"; the columns are number'),
        ("width > 1; drop table samples", 'syntax error at or near ";"; the columns are '),
        ("width > 1 limit 3", 'syntax error at or near "limit"; the columns are '),
        ("1 = 1) from samples where (1 = 1", "one expression is needed, such as width >= 256"),
        ("width > 1), (true", "one expression is needed, such as width >= 256"),
        (" ", "one expression is needed, such as width >= 256"),
        ("width in (select 1)", "an expression without SELECT is needed"),
        ("exists(select * from read_text('/etc/hostname'))", "an expression without SELECT is needed"),
        ("getenv('HOME') = ''", "Scalar Function with name getenv does not exist; the columns are "),
        ("count(*) > 1", "WHERE clause cannot contain aggregates; the columns are "),
        ("row_number() over () > 1", "WHERE clause cannot contain window functions; the columns are "),
        ("? = 1", "Values were not provided for the following parameters: 1; the columns are "),
        ("width", "a condition is needed, such as width >= 256; this is INTEGER"),
        ("key::int / 0 = 'x'", "Could not convert string 'x' to DOUBLE"),
        ("caption::int = 1", "Could not convert string 'a b c' to INT32"),
    ],
)
def test_a_wrong_condition_is_told_with_the_columns(tmp_path: Path, source: str, where: str, message: str) -> None:
    told = refused(source, str(tmp_path / "sel"), where=where)
    assert told.startswith(f"--where {where!r}: {message}") and "\n" not in told


def test_no_query_reaches_files_or_settings(source: str, tmp_path: Path) -> None:
    import duckdb

    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with open_samples(table_of(Shards(source))) as samples:
        for query in (
            f"select * from read_csv('{secret}')",
            f"select * from '{secret}'",
            f"copy samples to '{tmp_path}/stolen.csv'",
            f"attach '{tmp_path}/stolen.db'",
            "install httpfs",
            "set enable_external_access = true",
            "reset lock_configuration",
        ):
            with pytest.raises(duckdb.Error):
                samples.ask(query)
        secret_rows = [1, 2]  # a variable of Python is no table either
        with pytest.raises(duckdb.Error):
            samples.ask("select * from secret_rows")
        assert secret_rows and not list(tmp_path.glob("stolen*"))


# Scores


def test_scores_from_vectors_are_the_cosines_of_picture_and_caption(tmp_path: Path, source: str) -> None:
    numbers = [0, 1, 2, 4, 5, 6, 7]
    degrees = [0, 10, 20, 30, 40, 50, 90]
    folder = vectors_of(
        source, tmp_path / "v", angles(*[0.0] * 7), angles(*degrees), numbers, left_out={"not a picture": 1}
    )
    facts = filter(source, str(tmp_path / "sel"), vectors=folder, min_score=0.8, scores=str(tmp_path / "scores"))
    # cosines 1 .98 .94 .87 .77 .64 0
    assert [int(key) for key in kept(tmp_path / "sel")] == [0, 1, 2, 4]
    assert facts["dropped"] == {"unreadable: not a picture": 1, "score below 0.8": 3}
    table = pq.read_table(tmp_path / "scores").to_pydict()
    assert (
        table["number"] == numbers
        and table["key"][-1] == "00007"
        and table["shard"][:4] == ["000.tar"] * 3 + ["001.tar"]
    )
    np.testing.assert_allclose(table["clip_score"], np.cos(np.deg2rad(degrees)), atol=1e-3)
    facts = filter(source, str(tmp_path / "top"), vectors=folder, top=0.3)
    assert [int(key) for key in kept(tmp_path / "top")] == [0, 1]  # round(0.3 * 7)
    assert facts["dropped"] == {"unreadable: not a picture": 1, "score not in the best 30 %": 5}
    # a condition comes first: of 4 5 6 7, and then of all whose score it likes
    filter(source, str(tmp_path / "three"), vectors=folder, top=0.5, where="shard = '001.tar'")
    assert [int(key) for key in kept(tmp_path / "three")] == [4, 5]
    facts = filter(source, str(tmp_path / "four"), vectors=folder, top=0.5, where="clip_score < 0.95 or number = 3")
    assert [int(key) for key in kept(tmp_path / "four")] == [2, 4]
    assert facts["dropped"]["where is false"] == 2
    filter(source, str(tmp_path / "five"), vectors=folder, where="CLIP_SCORE between 0.5 and 0.9 and width > 40")
    assert [int(key) for key in kept(tmp_path / "five")] == [4, 5]


def test_of_equal_scores_the_first_are_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "s", [one(i, caption="c") for i in range(5)])
    folder = vectors_of(source, tmp_path / "v", angles(0, 0, 0, 0, 0), angles(60, 0, 0, 0, 0))
    filter(source, str(tmp_path / "sel"), vectors=folder, top=0.4)
    assert kept(tmp_path / "sel") == ["00001", "00002"]
    filter(source, str(tmp_path / "least"), vectors=folder, top=0.01)
    assert kept(tmp_path / "least") == ["00001"]


def test_samples_without_caption_or_vector_have_no_score(tmp_path: Path) -> None:
    source = write(tmp_path / "s", [one(0, caption="c"), one(1), one(2, caption="c"), one(3, caption="c")])
    folder = vectors_of(
        source, tmp_path / "v", angles(0, 0, 0), angles(0, 0, 0), [0, 1, 3], left_out={"broken picture": 1}
    )
    facts = filter(source, str(tmp_path / "sel"), vectors=folder, min_score=0.5)
    assert kept(tmp_path / "sel") == ["00000", "00003"] and facts["dropped"] == {"no caption": 1, "no vector": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return making.saved(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("workers", [0, 1])
def test_scores_by_a_model_are_those_of_pictures_one_by_one(
    tmp_path: Path, source: str, model: str, workers: int
) -> None:
    held, loaded = Shards(source), models.load(model, "cpu")
    wanted = {}
    for number in [0, 1, 2, 4, 5, 6, 7]:
        text = held.read(*held.place(number), "txt").decode()
        image = loaded(image=eval_view(held.image(number), loaded.shape)[None]).image
        wanted[number] = float((image * loaded(text=loaded.tokenizer([text])).text).detach().sum())
    scores = str(tmp_path / "scores")
    middle = float(np.median(list(wanted.values())))
    filter(source, str(tmp_path / "sel"), model=model, min_score=middle - 1e-5, scores=scores, workers=workers)
    found = pq.read_table(scores).to_pydict()
    assert found["number"] == list(wanted)
    np.testing.assert_allclose(found["clip_score"], list(wanted.values()), atol=1e-5)
    assert [int(key) for key in kept(tmp_path / "sel")] == [n for n, score in wanted.items() if score >= middle - 1e-5]


def test_a_folder_of_embed_gives_the_scores_of_its_model(tmp_path: Path, source: str, model: str) -> None:
    embed(model, source, str(tmp_path / "v"))
    filter(source, str(tmp_path / "one"), model=model, top=0.5, scores=str(tmp_path / "by_model"), workers=0)
    filter(source, str(tmp_path / "two"), vectors=str(tmp_path / "v"), top=0.5, scores=str(tmp_path / "by_folder"))
    one, two = (pq.read_table(tmp_path / name).to_pydict() for name in ("by_model", "by_folder"))
    assert one["number"] == two["number"] == [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(one["clip_score"], two["clip_score"], atol=2e-3)  # float16 in the folder


def test_a_model_counts_what_it_cannot_decode_or_read(tmp_path: Path, model: str) -> None:
    cut = one(1, caption="c")
    samples = [one(0, caption="c"), {**cut, "jpg": cut["jpg"][:-300]}, one(2), one(3, caption="c")]
    source = write(tmp_path / "s", samples)
    facts = filter(source, str(tmp_path / "sel"), model=model, min_score=-1, workers=0)
    assert kept(tmp_path / "sel") == ["00000", "00003"]
    assert facts["dropped"] == {"no caption: no txt": 1, "unreadable: broken picture": 1}
    facts = filter(source, str(tmp_path / "pictures"), where="width > 1")  # a header tells nothing of the pixels
    assert facts["kept"] == 4


# Refusals


def test_vectors_of_other_samples_are_refused(tmp_path: Path, source: str) -> None:
    few = vectors_of(source, tmp_path / "few", angles(0, 0), angles(0, 0), [0, 1], left_out={"broken picture": 5})
    wanted = f"{few}: has vectors of 2 of the 8 samples of {source}, and tells of 5 that were left out; embed again"
    assert refused(source, str(tmp_path / "sel"), vectors=few, top=0.5) == wanted
    other = write(tmp_path / "t", [one(i, caption="c") for i in range(4)])
    folder = vectors_of(other, tmp_path / "v", angles(0, 0, 0, 0), angles(0, 0, 0, 0))
    wanted = (
        f"{folder}: has no vector of {source}, it was made of {other}; "
        f"`clipkit embed MODEL {source} --out VECTORS` makes a folder that has"
    )
    assert refused(source, str(tmp_path / "sel"), vectors=folder, top=0.5) == wanted
    os.replace(
        write(tmp_path / "u", [one(i, caption="longer " * 200) for i in range(4)]) + "/000.tar", other + "/000.tar"
    )
    wanted = f"{folder}: 3 pictures of {other}/000.tar lie elsewhere now; embed again"
    assert refused(other, str(tmp_path / "sel"), vectors=folder, top=0.5) == wanted
    none = vectors_of(other, tmp_path / "none", angles(0, 0, 0, 0))
    wanted = f"{none}: was made with no captions, --caption txt is asked for; embed again with it"
    assert refused(other, str(tmp_path / "sel"), vectors=none, top=0.5) == wanted
    else_where = vectors_of(other, tmp_path / "w", angles(0, 0, 0, 0), angles(0, 0, 0, 0), caption="json:texts")
    wanted = f"{else_where}: was made with the captions of json:texts, --caption txt is asked for; embed again with it"
    assert refused(other, str(tmp_path / "sel"), vectors=else_where, top=0.5) == wanted
    for table in sorted((tmp_path / "none/metadata").iterdir()):
        pq.write_table(pq.read_table(table, columns=["key", "caption"]), table)
    wanted = f"{none}: its metadata/ do not say where the pictures lie; `clipkit embed` writes that"
    assert refused(other, str(tmp_path / "sel"), vectors=none, top=0.5) == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "filter: nothing to filter by; give --where, or --model with --min-score or --top"),
        ({"where": "true", "top": 0.5}, "--top: scores are of a model; give --model MODEL or --vectors FOLDER"),
        ({"min_score": 0.5}, "--min-score: scores are of a model; give --model MODEL or --vectors FOLDER"),
        ({"where": "true", "scores": "x"}, "--scores: scores are of a model; give --model MODEL or --vectors FOLDER"),
        (
            {"model": "m", "vectors": "v", "top": 0.5},
            "give a model (--model) or a folder of `clipkit embed` (--vectors), and not both",
        ),
        ({"model": "m", "top": 0.5, "min_score": 0.5}, "give --min-score or --top, and not both"),
        ({"model": "m", "min_score": 28}, "--min-score: a cosine from -1 to 1 is needed, got 28"),
        (
            {"model": "m", "top": 30},
            "--top: a share above 0 and up to 1 is needed, such as 0.3 for the best 30 %, got 30",
        ),
        (
            {"model": "m", "where": "true"},
            "--model, --vectors: nothing uses the scores; give --min-score, --top, or clip_score in --where",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    tmp_path: Path, source: str, given: dict[str, Any], message: str
) -> None:
    assert refused(source, str(tmp_path / "sel"), **given) == message


def test_nothing_kept_is_an_error_that_says_why(tmp_path: Path, source: str) -> None:
    wanted = (
        f"{source}: none of 8 samples would be kept (unreadable: not a picture: 1, where is false: 7); "
        "nothing is written"
    )
    assert refused(source, str(tmp_path / "sel"), where="width > 1000") == wanted


def test_what_exists_is_left_as_it_is(tmp_path: Path, source: str) -> None:
    (tmp_path / "sel").write_text("mine")
    for given in ({"out": "sel"}, {"out": "new", "scores": str(tmp_path / "sel"), "vectors": "v"}):
        out = str(tmp_path / given.pop("out"))
        with pytest.raises(UserError) as error:
            filter(source, out, where="width > 1", **given)
        wanted = f"{tmp_path}/sel: already exists and is left as it is; remove it, or give another name"
        assert str(error.value) == wanted
    assert (tmp_path / "sel").read_text() == "mine" and not (tmp_path / "new").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, source: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"^{tmp_path}/file/sel: cannot be written"):
        filter(source, f"{tmp_path}/file/sel", where="width > 1")
    folder = vectors_of(source, tmp_path / "v", angles(*[0] * 8), angles(*[0] * 8))
    with pytest.raises(StorageError, match=f"^{tmp_path}/file/scores: cannot be written"):
        filter(source, f"{tmp_path}/sel", vectors=folder, top=1, scores=f"{tmp_path}/file/scores")
