"""`clipkit search` as it is typed."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.search import open_index
from clipkit.search.hits import Hit
from clipkit.search.montage import draw
from tests import making
from tests.conftest import Typed
from tests.search.given import vectors, write_index


@pytest.fixture
def run(pictured: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Calls `clipkit search` in the folder of pictures; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(pictured)
    return functools.partial(typed, "search")


def test_the_table_tells_rank_score_key_caption_and_place(run: Typed, pictured: Path) -> None:
    code, out, err = run("index", "--image", "pictures/02.jpg", "-k", "2")
    head, first, second = out.splitlines()
    place = (pictured / "pictures/02.jpg").resolve()
    assert (code, err, head) == (0, "", "rank\tscore\tkey\tcaption\twhere")
    assert first == f"1\t1.000\t02\t{making.picture(2)[1]}\t{place}" and second.startswith("2\t0.")


def test_every_option_reaches_the_search(run: Typed, pictured: Path) -> None:
    code, out, _ = run(
        "index", "a red dot", "a square", "--image", "pictures/02.jpg", "--key", "05", "--id", "6", "--not", "a circle",
        "--weight", "1", "--weight", "2", "--weight", "1", "--weight", "1", "--weight", "0.5", "--weight", "3",
        "--where", "width > 0 and key != '07'", "--unique", "0.9999", "--diverse", "0.3", "-k", "20", "--kind", "text",
        "--json",
    )  # fmt: skip
    found = [json.loads(line) for line in out.splitlines()]
    wanted = open_index(pictured / "index").search(
        ["a red dot", "a square"], pictured / "pictures/02.jpg", "05", id=6, without="a circle",
        weights=[1, 2, 1, 1, 0.5, 3], k=20, where="width > 0 and key != '07'", unique=0.9999, diverse=0.3, kind="text",
    )  # fmt: skip
    assert code == 0 and found == [hit.as_dict() for hit in wanted] and 0 < len(found) <= 20
    assert not {"05", "06", "07"} & {hit["key"] for hit in found}


def test_a_condition_that_leaves_few_or_nothing_is_told(run: Typed) -> None:
    code, out, err = run("index", "a dot", "--where", "width > 9999")
    assert (code, out) == (0, "rank\tscore\tkey\tcaption\twhere\n")
    assert err == "--where 'width > 9999': 0 of 24 rows are left to search\n"
    code, out, err = run("index", "a dot", "--where", "key in ('03', '04')", "-k", "9")
    assert code == 0 and len(out.splitlines()) == 3 and "2 of 24 rows are left" in err
    assert run("index", "a dot", "--where", "width > 0")[2] == ""


def test_more_than_there_are_is_all(run: Typed) -> None:
    assert len(run("index", "a dot", "-k", "1000", "--json")[1].splitlines()) == 24


def test_a_batch_is_answered_in_json_lines(run: Typed, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("a red dot\na square\n")
    code, out, _ = run("index", "--batch", str(tmp_path / "q.txt"), "-k", "3")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["query"]["text"] for row in rows] == ["a red dot", "a square"]
    single = [json.loads(line) for line in run("index", "a square", "-k", "3", "--json")[1].splitlines()]
    assert [hit["id"] for hit in rows[1]["hits"]] == [hit["id"] for hit in single]
    (tmp_path / "bad.jsonl").write_text('{"key": "gone"}\n')
    code, out, err = run("index", "--batch", str(tmp_path / "bad.jsonl"))
    assert code == 3 and "error" in json.loads(out) and "none of 1 queries could be answered" in err


def test_a_montage_shows_what_was_found(run: Typed, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    code, out, err = run(
        "index", "a $dot", "--not", "$\\frac{", "--where", "width > 0", "-k", "8", "--montage", str(path)
    )
    assert code == 0 and len(out.splitlines()) == 9 and err == f"{path}: 8 pictures\n"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 1200 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert not [each.name for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_a_montage_of_nothing_and_of_pictures_that_are_gone_says_so(run: Typed, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    assert run("index", "a dot", "--where", "width < 0", "--montage", str(path))[2].endswith(f"{path}: 0 pictures\n")
    write_index(tmp_path / "gone", {"image": vectors(3)})
    code, _, err = run(str(tmp_path / "gone"), "--id", "0", "--montage", str(path))
    told = [line for line in err.splitlines() if "is not shown" in line]
    assert code == 0 and len(told) == 2 and err.endswith(f"{path}: 0 pictures\n")
    assert told[0].endswith("is not shown: nowhere.tar: No such file or directory")


def test_a_montage_bears_any_caption(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    captions = ["日本 \x07\u202e $x", "x" * 5000, "", "a\nb", "\ud83d"]
    hits = [Hit(i, 0.5, f"k{i}", caption, "", 0, 0, {}) for i, caption in enumerate(captions)]
    assert len(draw(hits, "title " * 500, tmp_path / "x.png")) == len(captions)
    assert (tmp_path / "x.png").stat().st_size > 1000


BAD = {
    "nothing": (("index",), "search: words, a picture or a key to search by are needed"),
    "only not": (("index", "--not", "a"), "; --not takes away from them"),
    "weights": (
        ("index", "a", "--weight", "1", "--weight", "2"),
        "search: as many weights as parts are needed: 1; got 2",
    ),
    "where": (("index", "a", "--where", "wdth > 3"), "no such column: wdth; did you mean 'width'?"),
    "attack": (("index", "a", "--where", "1) union select 1 --"), "its brackets do not match"),
    "kind": (("index", "a", "--kind", "sound"), "search: kind is image or text, got 'sound'"),
    "unique": (("index", "a", "--unique", "0"), "search: unique is a cosine above 0 and up to 1, got 0.0"),
    "diverse": (("index", "a", "--diverse", "2"), "search: diverse is a share from 0 to 1, got 2.0"),
    "key": (("index", "--key", "gone"), "index: no row has the key 'gone'"),
    "id": (("index", "--id", "99"), "index: no row has the id 99; they go up to 23"),
    "picture": (("index", "--image", "none.jpg"), "none.jpg: no such file"),
    "batch": (("index", "a", "--batch", "q.txt"), "--batch: the queries are in the file; give no other beside it"),
    "no batch": (("index", "--batch", "q.txt"), "q.txt: cannot be read"),
    "montage name": (("index", "a", "--montage", "x.jpg"), "--montage x.jpg: a name that ends in .png is needed"),
    "montage size": (
        ("index", "a", "-k", "601", "--montage", "x.png"),
        "x.png: up to 600 pictures are drawn, got -k 601",
    ),
    "montage folder": (("index", "a", "--montage", "folder.png"), "--montage folder.png: is a folder"),
    "montage place": (
        ("index", "a", "--montage", "no/x.png"),
        "--montage no/x.png: there is no folder no to write it to",
    ),
    "folder": (("nowhere", "a"), "nowhere: no such folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_in_one_line(run: Typed, case: str) -> None:
    arguments, message = BAD[case]
    Path("folder.png").mkdir(exist_ok=True)
    code, out, err = run(*arguments)
    assert code == 2 and not out and err.startswith("clipkit: ") and err.count("\n") == 1 and message in err, err


def test_a_montage_needs_matplotlib(run: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("index", "a", "--montage", str(tmp_path / "x.png"))
    assert code == 2 and err == "clipkit: --montage is drawn by matplotlib; type: pip install 'clipkit[demo]'\n"
