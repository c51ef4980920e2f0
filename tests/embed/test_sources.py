"""Each kind of source: what it gives, what it leaves out, and what is said of one that is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit import shards
from clipkit.embed import embed
from clipkit.embed.collection import open_collection
from clipkit.errors import BadData, UserError
from tests import making, samples
from tests.embed import laid
from tests.sets.laid import parquet, picture


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return making.saved(tmp_path_factory.mktemp("model"))


def keys(folder: Path) -> list[str]:
    return [row["key"] for row in laid.metadata(folder)]


def test_a_folder_gives_all_pictures_below_it(model: str, tmp_path: Path) -> None:
    names = ["b/1.jpg", "a/1.jpg", "a/x.JPEG", "2.png", "2.jpg", "test/9.jpg"]
    folder = laid.pictures(tmp_path / "p", names)
    laid.broken(folder, "._2.jpg", ".cache/3.jpg")
    facts = embed(model, str(folder), str(tmp_path / "v"))
    assert facts["left_out"] == {} and facts["caption"] == "txt"
    assert keys(tmp_path / "v") == ["2.jpg", "2.png", "a/1", "a/x", "b/1", "test/9"]
    for row in laid.metadata(tmp_path / "v"):
        number = next(n for n, name in enumerate(names) if Path(row["shard"]).samefile(folder / name))
        assert row["image_path"] == row["shard"] and row["offset"] == 0
        if not row["key"].startswith("2"):  # whose .txt both pictures share
            assert row["caption"] == making.picture(number)[1]


def test_one_picture_is_a_source(model: str, tmp_path: Path) -> None:
    folder = laid.pictures(tmp_path / "p", ["a.jpg", "b.jpg"], captions=False)
    assert embed(model, str(folder / "b.jpg"), str(tmp_path / "v"))["kinds"] == ["image"]
    assert keys(tmp_path / "v") == ["b"]


def test_shards_are_a_source_by_folder_glob_and_brace_pattern(model: str, tmp_path: Path) -> None:
    folder = laid.shards(tmp_path / "s", (2, 3))
    for i, source in enumerate((f"{folder}", f"{folder}/*.tar", f"{folder}/{{000..001}}.tar", f"{folder}/001.tar")):
        facts = embed(model, source, str(tmp_path / f"{i}"), caption="json:texts")
        assert facts["rows"] == (5 if i < 3 else 3) and facts["caption"] == "json:texts"
        assert laid.metadata(tmp_path / f"{i}")[-1]["caption"] == making.picture(4)[1]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json", "t.parquet"])
def test_a_table_names_pictures_and_gives_captions_and_fields(model: str, tmp_path: Path, name: str) -> None:
    laid.pictures(tmp_path / "p", ["x/0.jpg", "x/1.jpg", "y/2.jpg"], captions=False)
    texts = [making.picture(n)[1] for n in range(3)]
    columns: dict[str, list[Any]] = {
        "path": ["x/0.jpg", "x/1.jpg", "y/2.jpg"],
        "text": texts,
        "split": ["train", "test", "test"],
    }
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    table, mark = tmp_path / "p" / name, "\t" if name == "t.tsv" else ","
    if name == "t.parquet":
        parquet(table, columns)
    elif name.startswith("t.json"):
        table.write_text(json.dumps(rows) if name == "t.json" else "\n".join(map(json.dumps, rows)))
    else:
        quoted = [f'"{row["text"]}"' for row in rows]
        lines = [mark.join((row["path"], text, row["split"])) for row, text in zip(rows, quoted, strict=True)]
        table.write_text("\n".join([mark.join(columns), *lines]))
    facts = embed(model, str(table), str(tmp_path / "v"), fields="split")
    assert facts["rows"] == 3 and facts["caption"] == "text"
    found = laid.metadata(tmp_path / "v")
    assert [row["key"] for row in found] == ["x/0", "x/1", "y/2"] and [row["caption"] for row in found] == texts
    assert [row["split"] for row in found] == ["train", "test", "test"]
    assert all(Path(row["shard"]).read_bytes() == making.picture(n)[0] for n, row in enumerate(found))


def test_pictures_inside_of_parquet_have_no_place(model: str, tmp_path: Path) -> None:
    inside = [{"bytes": picture(n), "path": f"{n}.jpg"} for n in range(3)]
    parquet(tmp_path / "d/train-0.parquet", {"image": inside, "caption": ["one", ["two"][0], "three"]})
    embed(model, str(tmp_path / "d"), str(tmp_path / "v"))
    found = laid.metadata(tmp_path / "v")
    assert [row["key"] for row in found] == ["train-0/1", "train-0/2", "train-0/3"]
    assert all(
        row["shard"] is None and row["offset"] is None and row["size"] == len(picture(n)) for n, row in enumerate(found)
    )


def test_a_folder_with_metadata_is_what_they_say(model: str, tmp_path: Path) -> None:
    folder = laid.pictures(tmp_path / "p", ["0.jpg", "1.jpg", "2.jpg"], captions=False)
    (folder / "metadata.csv").write_text("file_name,text,lang\n2.jpg,a dog,en\n0.jpg,ein Hund,de\n")
    embed(model, str(folder), str(tmp_path / "v"), fields="lang")
    found = laid.metadata(tmp_path / "v")
    assert [(row["key"], row["caption"], row["lang"]) for row in found] == [
        ("2", "a dog", "en"),
        ("0", "ein Hund", "de"),
    ]


def test_captions_of_coco_are_a_source(model: str, tmp_path: Path) -> None:
    folder = laid.pictures(tmp_path / "p", ["val2017/7.jpg", "val2017/8.jpg"], captions=False)
    tree = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (7, 8)],
        "annotations": [{"image_id": n, "caption": f"{word} {n}"} for n in (7, 8) for word in ("first", "second")],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations/captions_val2017.json").write_text(json.dumps(tree))
    embed(model, str(folder / "annotations/captions_val2017.json"), str(tmp_path / "v"), fields="id")
    found = laid.metadata(tmp_path / "v")
    assert [(row["key"], row["caption"], row["id"]) for row in found] == [("7", "first 7", 7), ("8", "first 8", 8)]


def test_pictures_of_a_table_may_lie_elsewhere(model: str, tmp_path: Path) -> None:
    laid.pictures(tmp_path / "far", ["a.jpg", "b.jpg"], captions=False)
    (tmp_path / "t.csv").write_text("image\na.jpg\nb.jpg\n")
    embed(model, str(tmp_path / "t.csv"), str(tmp_path / "v"), images=str(tmp_path / "far"))
    assert keys(tmp_path / "v") == ["a", "b"] and laid.about(tmp_path / "v")["kinds"] == ["image"]


def test_a_text_file_gives_a_caption_a_line(model: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeffa red car\n\n  a dog \r\n\x85ü\n")
    facts = embed(model, str(tmp_path / "words.txt"), str(tmp_path / "v"))
    assert facts["kinds"] == ["text"] and facts["rows"] == 3 and facts["left_out"] == {"empty line": 1}
    found = laid.metadata(tmp_path / "v")
    assert [(row["key"], row["caption"]) for row in found] == [("1", "a red car"), ("3", "a dog"), ("4", "ü")]
    assert found[0]["shard"] is None and found[0]["image_path"] is None and not (tmp_path / "v/img_emb").exists()


def test_texts_alone_leave_out_what_has_no_caption(model: str, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    members = [
        ("a.jpg", b"no picture"),
        ("a.txt", b"one"),
        ("b.jpg", picture(1)),
        ("b.txt", b" "),
        ("c.jpg", picture(2)),
    ]
    samples.write_tar(tmp_path / "s/0.tar", members)
    facts = embed(model, f"{tmp_path}/s", str(tmp_path / "v"), what="texts", max_bad=0.9)
    assert facts["rows"] == 1 and facts["left_out"] == {"no caption": 1, "no txt": 1}
    (row,) = laid.metadata(tmp_path / "v")
    assert (row["key"], row["caption"], row["sha256"]) == ("a", "one", None)
    assert shards.read_span(row["shard"], row["offset"], row["size"]) == b"no picture"


def test_texts_alone_tell_where_pictures_that_are_files_lie(model: str, tmp_path: Path) -> None:
    folder = laid.pictures(tmp_path / "p", ["0.jpg", "1.jpg"])
    (folder / "t.csv").write_text("image,text\n0.jpg,one\ngone.jpg,two\n")
    embed(model, str(folder), str(tmp_path / "v"), what="texts")
    embed(model, str(folder / "t.csv"), str(tmp_path / "w"), what="texts")
    assert [row["size"] for row in laid.metadata(tmp_path / "v")] == [len(making.picture(n)[0]) for n in range(2)]
    assert [row["size"] for row in laid.metadata(tmp_path / "w")] == [len(making.picture(0)[0]), None]


def test_bad_pictures_are_left_out_counted_and_named(model: str, tmp_path: Path, capsys: Any) -> None:
    source = laid.shards(tmp_path / "s", (30, 30, 30), bad=(3, 40, 41))
    facts = embed(model, str(source), str(tmp_path / "v"), part=20, max_bad=0.1)
    assert facts["rows"] == 87 and facts["left_out"] == {"not a picture": 3}
    assert "left out not a picture: 3; manifest.jsonl names them" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "v/manifest.jsonl").read_text().splitlines()]
    assert [line["rows"] for line in lines] == [19, 20, 18, 20, 10]
    assert lines[0]["left_out"] == [[f"{source}/000.tar key 00003", "not a picture"]]
    assert keys(tmp_path / "v") == [f"{n:05d}" for n in range(90) if n not in (3, 40, 41)]


def test_a_part_of_which_nothing_can_be_read_has_no_files(model: str, tmp_path: Path) -> None:
    source = laid.shards(tmp_path / "s", (9,), bad=(3, 4, 5))
    facts = embed(model, str(source), str(tmp_path / "v"), part=3, max_bad=0.5)
    assert facts["rows"] == 6 and facts["parts"] == 3
    assert [path.name for path in sorted((tmp_path / "v/img_emb").iterdir())] == [
        "img_emb_000000.npy",
        "img_emb_000002.npy",
    ]
    assert keys(tmp_path / "v") == [f"{n:05d}" for n in (0, 1, 2, 6, 7, 8)]


def test_too_many_bad_pictures_end_it_and_more_may_be_borne_then(model: str, tmp_path: Path) -> None:
    source, out = laid.shards(tmp_path / "s", (40,), bad=tuple(range(5, 17))), tmp_path / "v"
    with pytest.raises(
        BadData,
        match=r"s: 1[0-2] of 40 samples are unreadable \(not a picture: 1[0-2]\), --max-bad 0.01 bears fewer; "
        rf"the files in {out}/parts name them; mend them, or type the same again with a larger --max-bad",
    ):
        embed(model, str(source), str(out), part=4)
    assert not (out / "vectors.json").exists() and "key 00005" in (out / "parts/000001.json").read_text()
    assert embed(model, str(source), str(out), part=4, max_bad=0.3)["rows"] == 28
    one = laid.shards(tmp_path / "o", (20,), bad=(3,))
    assert embed(model, str(one), str(tmp_path / "x"))["rows"] == 19  # so few are borne in any collection
    with pytest.raises(BadData, match=r"1 of 20 samples are unreadable"):
        embed(model, str(one), str(tmp_path / "y"), max_bad=0.0)
    nothing = laid.shards(tmp_path / "n", (4,), bad=(0, 1, 2, 3))
    with pytest.raises(BadData, match=r"4 of 4 samples are unreadable"):
        embed(model, str(nothing), str(tmp_path / "w"), max_bad=1.0)


def test_what_is_known_to_be_lost_ends_it_before_anything_is_embedded(model: str, tmp_path: Path) -> None:
    message = r"words.txt: 10 of 100 samples are unreadable \(empty line: 10\), --max-bad 0.01 bears fewer; mend them"
    (tmp_path / "words.txt").write_text("a dog\n" * 90 + "\n" * 10)
    with pytest.raises(BadData, match=message):
        embed("no model is asked for", str(tmp_path / "words.txt"), str(tmp_path / "v"))
    assert not (tmp_path / "v").exists()
    assert embed(model, str(tmp_path / "words.txt"), str(tmp_path / "v"), max_bad=0.2)["captions"] == 90


def test_bad_samples_of_one_name_are_each_counted(model: str, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    several = [("a.jpg", b"none"), ("b.jpg", picture(0)), ("a.jpg", b"none"), ("c.jpg", picture(1))]
    samples.write_tar(tmp_path / "s/0.tar", several)
    facts = embed(model, f"{tmp_path}/s", str(tmp_path / "v"))
    assert facts["rows"] == 2 and facts["left_out"] == {"not a picture": 2}


def test_a_link_to_a_folder_it_lies_in_is_not_followed(model: str, tmp_path: Path) -> None:
    folder = laid.pictures(tmp_path / "p", ["a/1.jpg", "b/2.jpg"], captions=False)
    laid.pictures(tmp_path / "elsewhere", ["3.jpg"], captions=False)
    for name, to in (
        ("a/self", "."),
        ("a/up", "../.."),
        ("a/other", "../b"),
        ("b/other", "../a"),
        ("far", "../elsewhere"),
    ):
        (folder / name).symlink_to(to, target_is_directory=True)
    embed(model, str(folder), str(tmp_path / "v"))
    assert keys(tmp_path / "v") == ["a/1", "a/other/2", "b/2", "b/other/1", "far/3"]


def test_fields_of_any_kind_are_kept(model: str, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    values: list[dict[str, Any]] = [
        {"n": 1, "mixed": 1, "deep": {"a": [1, "ü"]}, "late": None, "big": 2**70, "half": "\ud800"},
        {"n": 2.5, "mixed": "x", "deep": [], "big": 1},
        {"n": None, "mixed": True, "late": "there"},
    ]
    some = [samples.sample(n, json=json.dumps(value).encode()) for n, value in enumerate(values)]
    samples.write_shard(tmp_path / "s/0.tar", some)
    embed(model, f"{tmp_path}/s", str(tmp_path / "v"), fields="n,mixed,deep,late,big,half", part=2)
    found = laid.metadata(tmp_path / "v")
    assert [row["n"] for row in found] == [1.0, 2.5, None] and [row["late"] for row in found] == [None, None, "there"]
    assert [row["mixed"] for row in found] == ["1", "x", True]
    assert json.loads(found[0]["deep"]) == {"a": [1, "ü"]} and found[1]["deep"] == "[]"
    assert [row["big"] for row in found] == [str(2**70), "1", None] and found[0]["half"] == "?"


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing": ("none", {}, r"none: no such file or folder"),
    "empty folder": (
        "empty",
        {},
        r"empty: neither \.tar shards nor pictures \(.*\) in this folder, nor a table of them",
    ),
    "what": ("s", {"what": "sounds"}, r"--what: one of images, texts, both is needed, got 'sounds'"),
    "dtype": ("s", {"dtype": "int8"}, r"--dtype: one of float16, float32 is needed, got 'int8'"),
    "decode": ("s", {"decode": "slow"}, r"--decode: one of exact, fast is needed, got 'slow'"),
    "caption place": ("s", {"caption": "title"}, r"caption: 'txt' or 'json:KEY' is needed, got 'title'"),
    "caption key": (
        "s",
        {"caption": "json:alt"},
        r"none of its first 3 samples has a caption under 'json:alt'; it has: label",
    ),
    "no captions": ("bare", {"what": "both"}, r"none of its first 1 samples has a caption under 'txt'; --caption says"),
    "field": (
        "s",
        {"fields": "numbr"},
        r"none of its first 3 samples has 'numbr' in its .json.* did you mean 'number'\?",
    ),
    "own field": ("s", {"fields": "number,Width"}, r"--fields Width: all samples have this name already, as they have"),
    "fields of files": ("bare", {"fields": "x"}, r"bare: --fields: keys of the .json of shards, or columns of a table"),
    "caption of files": ("bare", {"caption": "json:x"}, r"is for shards and tables; captions are the .txt beside each"),
    "caption of lines": ("w.txt", {"caption": "txt"}, r"is for shards and tables; captions are its lines here"),
    "images of lines": ("w.txt", {"what": "images"}, r"w.txt: --what images: a text file holds captions alone"),
    "images of shards": ("s", {"images": "x"}, r"s: --images: is for tables, whose rows name pictures; here is none"),
    "no lines": ("blank.txt", {}, r"blank.txt: holds no line of text; captions are needed, one a line"),
    "letters": ("latin.txt", {}, r"latin.txt: line 2: not UTF-8 text"),
    "column": ("t.csv", {"fields": "lnag"}, r"t.csv: no column 'lnag', which --fields names; did you mean 'lang'\?"),
    "caption column": ("t.csv", {"caption": "txt"}, r"t.csv: no column 'txt', which --caption names; "),
    "no path": ("u.csv", {}, r"u.csv: a column called image, .* is needed, got words"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_source_that_has_not_what_is_asked_for_is_told(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    laid.shards(tmp_path / "s", (3,))
    laid.pictures(tmp_path / "bare", ["0.jpg"], captions=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "w.txt").write_text("a dog\n")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"a\n\xfcber\n")
    (tmp_path / "t.csv").write_text("image,lang\nbare/0.jpg,en\n")
    (tmp_path / "u.csv").write_text("words\nhello\n")
    source, options, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        embed(model, source, "v", **options)
    assert not (tmp_path / "v").exists()


def test_a_collection_is_another_one_when_its_files_are(tmp_path: Path) -> None:
    folder = laid.pictures(tmp_path / "p", ["0.jpg", "1.jpg"])
    first = open_collection(str(folder)).fingerprint
    assert open_collection(str(folder)).fingerprint == first
    laid.pictures(folder, ["0.jpg", "1.jpg", "2.jpg"])
    assert open_collection(str(folder)).fingerprint != first
    source = laid.shards(tmp_path / "s", (3,))
    first = open_collection(str(source)).fingerprint
    laid.shards(tmp_path / "t", (3,), bad=(1,))
    (source / "000.tar").write_bytes((tmp_path / "t/000.tar").read_bytes())
    assert open_collection(str(source)).fingerprint != first
