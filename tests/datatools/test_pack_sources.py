"""Every kind of source is packed and read back as it was."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from clipkit.datatools.pack.rows import plain, words
from clipkit.datatools.pack.tables import number
from clipkit.errors import BadData, UserError
from tests.datatools.packing import NASTY, everything, folder, left_out, packed, pairs, picture, read
from tests.samples import shape

HERE = [(picture(i), text) for i, text in enumerate(NASTY)]


def pictures(top: Path, count: int = len(NASTY)) -> list[str]:
    """Pictures in a subfolder of `top`; their paths from `top` on."""
    (top / "img").mkdir(parents=True)
    names = [f"img/{i}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        (top / name).write_bytes(picture(i))
    return names


def message(error: type[Exception], src: Path | str, out: Path, **options: Any) -> str:
    with pytest.raises(error) as raised:
        packed(src, out, **options)
    assert not out.exists()
    return str(raised.value)


# Folders


def test_a_folder_is_packed_with_its_subfolders_and_caption_files(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 10)
    (src / "a" / "note.txt").write_text("no image has this stem")
    (src / "raw.heic").write_bytes(b"?")
    (src / ".hidden.jpg").write_bytes(b"?")
    facts = packed(src, tmp_path / "out")
    assert pairs(tmp_path / "out") == sorted((picture(i), shape(i)[1]) for i in range(10))
    assert facts["samples"] == 10 and facts["left_out"] == 0 and facts["splits"]["all"]["shards"] == 3
    assert facts["ignored"] == {".heic": 1, "text without image": 1}
    assert {about["path"] for _, _, about in read(tmp_path / "out").values()} == {
        f"{('', 'a/', 'a/b/')[i % 3]}{i:03d}.jpg" for i in range(10)
    }


def test_captions_with_any_letters_come_back_from_caption_files(tmp_path: Path) -> None:
    for i, text in enumerate(NASTY):
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / f"{i}.jpeg").write_bytes(picture(i))
        (tmp_path / "src" / f"{i}.TXT").write_bytes(f"\ufeff {text}\n".encode())
    packed(tmp_path / "src", tmp_path / "out")
    assert pairs(tmp_path / "out") == sorted(HERE)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red_apple-012", "red apple"), ("A cat (3)", "A cat"), ("cat12", "cat"), ("2_cats_4_5", "2 cats"),
        ("007", ""), ("--", ""), ("", ""), ("two  words", "two words"), ("x-1-y", "x 1 y"),
    ],
)  # fmt: skip
def test_a_file_name_is_a_caption_without_its_number(name: str, caption: str) -> None:
    assert words(name) == caption


def test_a_folder_without_captions_says_that_names_can_be_used(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    (src / "red_apple-1.jpg").write_bytes(picture(0))
    (src / "blue_car.jpg").write_bytes(picture(1))
    assert message(UserError, src, tmp_path / "out") == (
        f"{src}: no image has a caption file (photo.txt beside photo.jpg) and there is no metadata.csv; "
        "if the file names say what the images show, type --captions name"
    )
    packed(src, tmp_path / "out", captions="name")
    assert pairs(tmp_path / "out") == sorted([(picture(0), "red apple"), (picture(1), "blue car")])


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 3)
    folder(tmp_path / "far", 2)
    (src / "linked").symlink_to(tmp_path / "far")
    (src / "a" / "circle").symlink_to(src)
    assert packed(src, tmp_path / "out")["samples"] == 5


def test_metadata_of_an_image_folder_names_images_and_captions(tmp_path: Path) -> None:
    names = pictures(tmp_path / "src")
    rows = [{"file_name": name, "text": text, "n": i} for i, (name, text) in enumerate(zip(names, NASTY, strict=True))]
    (tmp_path / "src" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    packed(tmp_path / "src", tmp_path / "out")
    assert pairs(tmp_path / "out") == sorted(HERE)
    assert [about["n"] for _, _, about in sorted(read(tmp_path / "out").values())] == [
        HERE.index(pair) for pair in sorted(HERE)
    ]
    (tmp_path / "src" / "metadata.jsonl").write_text(json.dumps({"file_name": str(tmp_path / "x.jpg"), "text": "x"}))
    assert "1 of 1 samples cannot be used (outside the folder: 1)" in message(
        BadData, tmp_path / "src", tmp_path / "out2"
    )


# Tables


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_table_of_paths_keeps_its_other_columns(tmp_path: Path, kind: str) -> None:
    names = pictures(tmp_path / "src")
    rows = [
        {"filepath": name, "title": text, "id": f"00{i}", "score": i / 4, "n": i}
        for i, (name, text) in enumerate(zip(names, NASTY, strict=True))
    ]
    path = tmp_path / "src" / f"table.{kind}"
    if kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n" if kind == "jsonl" else json.dumps(rows))
    packed(path, tmp_path / "out", seed=None)
    found = list(read(tmp_path / "out").values())
    assert [(image, text) for image, text, _ in found] == HERE
    wanted: list[dict[str, Any]] = [{key: row[key] for key in ("filepath", "id", "score", "n")} for row in rows]
    if kind in ("csv", "tsv"):  # 0.0 and 1.0 are spelt as numbers are
        wanted = [{**row, "score": row["n"] / 4} for row in wanted]
    assert [about for _, _, about in found] == wanted


def test_lists_and_nested_columns_stay_and_several_captions_are_kept(tmp_path: Path) -> None:
    (name,) = pictures(tmp_path / "src", 1)
    row = {"image": name, "text": [" one ", "", "two"], "tags": ["a", "b"], "box": {"x": 1.5, "y": [None, True]}}
    for kind in ("jsonl", "parquet"):
        path = tmp_path / "src" / f"t.{kind}"
        if kind == "jsonl":
            path.write_text(json.dumps({**row, "when": float("nan")}))
        else:
            parquet.write_table(pyarrow.Table.from_pylist([{**row, "box": {"x": 1.5, "y": [None, True]}}]), path)
        packed(path, tmp_path / kind)
        ((_, text, about),) = read(tmp_path / kind).values()
        assert text == "one" and about.pop("when", None) is None
        assert about == {"image": name, "tags": ["a", "b"], "box": row["box"], "captions": ["one", "two"]}


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("-3", -3), ("0.25", 0.25), ("007", "007"), ("1.50", "1.50"), ("-0", "-0"), ("1e5", "1e5"), ("", ""),
     ("1_000", "1_000"), (" 7", " 7"), ("nan", "nan"), ("12345678901234567890", "12345678901234567890")],
)  # fmt: skip
def test_a_csv_field_is_a_number_where_it_is_spelt_as_one(text: str, value: str | int | float) -> None:
    assert number(text) == value and type(number(text)) is type(value)


def test_what_json_cannot_hold_is_told_as_text_or_null() -> None:
    import datetime

    day = datetime.date(2020, 1, 2)
    value = {"day": day, "nan": float("inf"), "blob": b"x", "inside": [day, b"x", (1, None)], "yes": True}
    assert plain(value) == {"day": "2020-01-02", "nan": None, "inside": ["2020-01-02", [1, None]], "yes": True}


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_images_inside_parquet_files_of_a_folder_or_glob_are_taken_as_they_are(tmp_path: Path, kind: str) -> None:
    (tmp_path / "src").mkdir()
    images: list[Any] = [
        image if kind == "bytes" else {"bytes": image, "path": f"{i}.jpg"} for i, (image, _) in enumerate(HERE)
    ]
    for part, rows in enumerate((slice(0, 4), slice(4, None), slice(0, 0))):
        table = pyarrow.table({"image": pyarrow.array(images)[rows], "caption": pyarrow.array(NASTY)[rows]})
        parquet.write_table(table, tmp_path / "src" / f"{part}.parquet", row_group_size=2)
    packed(tmp_path / "src", tmp_path / "out")
    packed(f"{tmp_path}/src/*.parquet", tmp_path / "out2")
    assert pairs(tmp_path / "out") == pairs(tmp_path / "out2") == sorted(HERE)
    assert not (tmp_path / "out" / ".pack").exists()


def test_rows_that_are_no_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    names = pictures(tmp_path / "src")
    good = [json.dumps({"image": name, "caption": "good"}).encode() for name in names]
    bad = [b"{", b"[1]", b'{"image": "img/0.jpg", "caption": "\xff"}', b'{"image": "img/0.jpg", "caption": "\\ud800"}']
    bad += [b'{"image": "img/0.jpg", "caption": 3}', b'{"image": "img/0.jpg"}', b'{"image": null, "caption": "x"}']
    bad += [b'{"image": "img/\\u0000", "caption": "x"}', b'{"image": "https://x.y/z.jpg", "caption": "x"}']
    (tmp_path / "src" / "t.jsonl").write_bytes(b"\n".join(good + bad))
    facts = packed(tmp_path / "src" / "t.jsonl", tmp_path / "out", max_bad=0)
    assert facts["left_out_because"] == {
        "JSON that is no object": 1, "an address, not a file": 1, "broken JSON": 1, "caption is not UTF-8": 2,
        "caption is not text": 1, "empty caption": 1, "no image": 1, "no such file": 1,
    }  # fmt: skip
    assert left_out(tmp_path / "out")[:2] == [
        ("t.jsonl line 7", "broken JSON"),
        ("t.jsonl line 8", "JSON that is no object"),
    ]
    assert facts["samples"] == 6 and facts["left_out"] == 9


def test_a_csv_with_odd_rows_says_where_they_stand(tmp_path: Path) -> None:
    names = pictures(tmp_path / "src")
    lines = [f'{name},"good\nin two lines"' for name in names]
    (tmp_path / "src" / "t.csv").write_bytes(
        "\n".join(["path,caption", *lines, "only", "", "a,b,c"]).encode() + b"\nimg/0.jpg,\xe4\n"
    )
    packed(tmp_path / "src" / "t.csv", tmp_path / "out")
    fields = "another number of fields than the header"
    wanted = [
        ("t.csv line 14", fields),
        ("t.csv line 16", fields),
        ("t.csv line 17: img/0.jpg", "caption is not UTF-8"),
    ]
    assert left_out(tmp_path / "out") == wanted


@pytest.mark.parametrize("path", ["../../../etc/passwd", "img/../../x.jpg", "..", "", "/etc/passwd"])
def test_paths_that_climb_out_are_refused(tmp_path: Path, path: str) -> None:
    pictures(tmp_path / "src", 1)
    (tmp_path / "x.jpg").write_bytes(picture(0))
    coco = {"images": [{"id": 1, "file_name": "img/0.jpg"}, {"id": 2, "file_name": path}]}
    coco["annotations"] = [{"image_id": i, "caption": "c"} for i in (1, 2)]
    (tmp_path / "src" / "c.json").write_text(json.dumps(coco))
    facts = packed(tmp_path / "src" / "c.json", tmp_path / "out")
    assert facts["left_out_because"] == {"outside the folder" if path else "no image": 1}
    rows = [{"image": "img/0.jpg", "caption": "c"}, {"image": path, "caption": "c"}]
    (tmp_path / "src" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    facts = packed(tmp_path / "src" / "t.jsonl", tmp_path / "out2")
    if path != "/etc/passwd":  # a table of one's own may hold absolute paths
        assert facts["left_out_because"] == {"outside the folder" if path else "no image": 1}
    else:
        assert facts["left_out_because"] == {"not a picture": 1}


def test_a_root_and_absolute_paths_say_where_images_are(tmp_path: Path) -> None:
    names = pictures(tmp_path / "elsewhere", 2)
    (tmp_path / "t.csv").write_text(f"path,caption\n{names[0]},a\n{tmp_path}/elsewhere/{names[1]},b\n")
    packed(tmp_path / "t.csv", tmp_path / "out", root=str(tmp_path / "elsewhere"))
    assert pairs(tmp_path / "out") == sorted([(picture(0), "a"), (picture(1), "b")])


# COCO


def test_coco_captions_are_all_kept_and_images_are_found(tmp_path: Path) -> None:
    ids = (7, 3, 9)
    images = [{"id": id, "file_name": f"{id:012d}.jpg", "width": 48} for id in ids]
    annotations = [{"id": n, "image_id": id, "caption": f"{NASTY[n % 6]} {id}"} for n, id in enumerate((7, 3, 7, 9, 5))]
    for place in ("annotations", "val2017"):
        (tmp_path / place).mkdir()
    for id in ids:
        (tmp_path / "val2017" / f"{id:012d}.jpg").write_bytes(picture(id))
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    facts = packed(path, tmp_path / "out", seed=None)
    found = list(read(tmp_path / "out").values())
    assert [(image, text) for image, text, _ in found] == [
        (picture(7), NASTY[0] + " 7"), (picture(3), NASTY[1] + " 3"), (picture(9), NASTY[3] + " 9"),
    ]  # fmt: skip
    assert found[0][2] == {
        "image_id": 7, "file_name": "000000000007.jpg", "width": 48, "captions": [NASTY[0] + " 7", NASTY[2] + " 7"],
    }  # fmt: skip
    assert "captions" not in found[1][2] and facts["left_out_because"] == {"no image of that id": 1}
    assert facts["captions"]["several"] == 1 and facts["captions"]["captions"] == 4
    for image in (tmp_path / "val2017").iterdir():
        image.unlink()
    assert message(UserError, path, tmp_path / "out2") == (
        f"{path}: the images (the first is 000000000007.jpg) are not in its folder, the one above, or images/, "
        "val2017/ there; type --root FOLDER"
    )


# Saved data sets


def test_a_saved_data_set_is_read_where_it_lies(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    image = [Image.open(io.BytesIO(image)) for image, _ in HERE]
    rows = {"image": image, "caption": [[text, "again"] for text in NASTY], "n": list(range(6))}
    whole = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    whole.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": whole, "dev": whole.select([2])}).save_to_disk(tmp_path / "dict")
    packed(tmp_path / "one", tmp_path / "out")
    packed(tmp_path / "dict", tmp_path / "train", split="train")
    packed(tmp_path / "dict", tmp_path / "dev", split="dev")
    stored = {
        n: row["bytes"] for n, row in enumerate(whole.cast_column("image", datasets.Image(decode=False))["image"])
    }
    assert pairs(tmp_path / "out") == pairs(tmp_path / "train") == sorted(zip(stored.values(), NASTY, strict=True))
    assert sorted(about["n"] for _, _, about in read(tmp_path / "out").values()) == list(range(6))
    assert [text for _, text in pairs(tmp_path / "dev")] == [NASTY[2]]
    assert message(UserError, tmp_path / "dict", tmp_path / "x") == (
        f"{tmp_path}/dict: holds several splits; there are train, dev; type --split NAME"
    )
    assert message(UserError, tmp_path / "dict", tmp_path / "x", split="test") == (
        f"{tmp_path}/dict: --split test: no such split; there are train, dev; type --split NAME"
    )


def saved(folder: Path, compression: str | None = None, names: list[str] | None = None) -> Path:
    """A saved data set made by hand: bytes, a missing image, a path, and a path that climbs out."""
    pictures(folder, 3)
    images = [{"bytes": picture(0), "path": None}, None, {"bytes": None, "path": "img/1.jpg"}]
    images.append({"bytes": None, "path": "../x.jpg"})
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"picture": pyarrow.array(images, kind), "text": pyarrow.array(["a", "b", "c", "d"])})
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.ipc.new_stream(folder / "data-0.arrow", table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=3)
    files = [{"filename": name} for name in names or ["data-0.arrow"]]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_a_saved_data_set_may_hold_paths_gaps_and_compressed_parts(tmp_path: Path, compression: str | None) -> None:
    facts = packed(saved(tmp_path / "src", compression), tmp_path / "out")
    assert pairs(tmp_path / "out") == sorted([(picture(0), "a"), (picture(1), "c")])
    assert facts["left_out_because"] == {"no image": 1, "outside the folder": 1}


def test_a_damaged_or_half_copied_data_set_says_so(tmp_path: Path) -> None:
    src = saved(tmp_path / "src", names=["../x.arrow"])
    assert message(UserError, src, tmp_path / "out") == f"{src}: ../x.arrow is not there; copy the whole folder"
    src = saved(tmp_path / "src2")
    (src / "data-0.arrow").write_bytes((src / "data-0.arrow").read_bytes()[:600])
    assert f"{src}/data-0.arrow: is damaged (" in message(BadData, src, tmp_path / "out")


# Messages


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        ("a,b", {}, "no column for the image; the columns are: a, b; type --image COLUMN"),
        ("path,b", {}, "no column for the caption; the columns are: path, b; type --caption COLUMN"),
        ("path,text,Title", {}, "several columns could be the caption (text, Title); the columns are: path, text, "
         "Title; type --caption COLUMN"),
        ("path,text", {"image": "img"}, "--image img: no such column; the columns are: path, text"),
        ("path,text", {"caption": "x"}, "--caption x: no such column; the columns are: path, text"),
        ("path,text", {"group": "x"}, "--group x: no such column; the columns are: path, text"),
        ("url,text", {}, "column 'url' holds addresses and nothing is downloaded here; download with img2dataset, "
         "whose shards need no packing"),
        ("path,text", {"captions": "name"}, "--captions has no meaning for a table"),
        ("path,path", {}, "column 'path' stands twice; name each once"),
    ],
)  # fmt: skip
def test_columns_that_are_not_to_be_found_are_told_with_those_that_are(
    tmp_path: Path, columns: str, options: dict[str, str], told: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{columns}\n" + ",".join("x" * len(columns.split(","))) + "\n")
    assert message(UserError, path, tmp_path / "out", **options) == f"{path}: {told}"


def test_things_that_cannot_be_packed_say_what_can(tmp_path: Path) -> None:
    kinds = "an image folder, .csv, .tsv, .jsonl, .parquet, COCO .json, or a saved Hugging Face data set"
    out = tmp_path / "out"
    files = {
        "a.tar": (b"", "is a .tar shard already, which needs no packing"),
        "a.doc": (b"", f"nothing that can be packed; give {kinds}"),
        "empty.csv": (b"path,caption\n", "holds no rows"),
        "b.json": (b'{"a": 1}', "is neither COCO captions (images and annotations) nor a list of rows"),
        "c.json": (b'{"images": [], "annotations": [{"bbox": 1}]}', "no annotation holds a 'caption'; give a "
                   "captions_*.json of COCO"),
        "d.json": (b'{"images": [1], "annotations": []}', "images or annotations hold something that is no object; "
                   "mend the file"),
        "u.csv": (b"\xff\xfea\0", "is UTF-16; save it as UTF-8"),
        "w.jsonl": (b'{"image": "https://x.y/z.jpg", "text": "x"}', "column 'image' holds addresses and nothing is "
                    "downloaded here; download with img2dataset, whose shards need no packing"),
    }  # fmt: skip
    for name, (data, told) in files.items():
        (tmp_path / name).write_bytes(data)
        assert message(UserError, tmp_path / name, out) == f"{tmp_path / name}: {told}"
    assert message(UserError, "nowhere", out) == f"nowhere: no such file or folder; give {kinds}"
    assert message(UserError, "no*.parquet", out) == f"no*.parquet: no file matches; give {kinds}"
    assert message(UserError, f"{tmp_path}/[ae]*.*", out) == (
        f"{tmp_path}/[ae]*.*: matches files of several kinds (.csv, .doc, .tar); give one kind"
    )
    assert message(UserError, tmp_path, out) == f"{tmp_path}: holds .tar shards already, which need no packing"
    (tmp_path / "none").mkdir()
    assert message(UserError, tmp_path / "none", out) == (
        f"{tmp_path}/none: no images (.jpg, .jpeg, .png, .webp, .bmp, .gif) in this folder; give another one"
    )


def test_damaged_tables_say_where(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('path,caption\na.jpg,b\nc.jpg,"never closed\n')
    told = message(UserError, tmp_path / "q.csv", tmp_path / "out")
    assert told.startswith(f"{tmp_path}/q.csv line 3: unexpected end of data; quote fields as CSV does")
    (tmp_path / "x.json").write_text("{}\n{}\n")
    told = message(UserError, tmp_path / "x.json", tmp_path / "out")
    assert told.startswith(f"{tmp_path}/x.json: is no JSON (") and told.endswith("are told by the suffix .jsonl")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    told = message(BadData, tmp_path / "x.parquet", tmp_path / "out")
    assert told.startswith(f"{tmp_path}/x.parquet: is damaged after row 0, or no Parquet (")
    assert told.endswith("); fetch it again")


def test_a_choice_of_rows_beside_the_data_and_a_closed_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src = saved(tmp_path / "src")
    (src / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}')
    told = f"{src}: holds a choice of rows beside them; save it after .flatten_indices()"
    assert message(UserError, src, tmp_path / "out") == told
    src, scan = folder(tmp_path / "closed", 3), os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("/a/"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    told = f"{src}/a/: cannot be read (Permission denied); mend that or move it out"
    assert message(UserError, src, tmp_path / "out") == told


def test_a_name_that_is_no_utf8_is_packed(tmp_path: Path) -> None:
    src = folder(tmp_path / "src", 2)
    name = os.fsencode(src) + b"/k\xe4se.jpg"
    try:
        Path(os.fsdecode(name)).write_bytes(picture(2))
    except OSError:
        pytest.skip("this file system takes no such name")
    Path(os.fsdecode(name)).with_suffix(".txt").write_text("cheese")
    packed(src, tmp_path / "out")
    assert (picture(2), "cheese") in pairs(tmp_path / "out") and everything(tmp_path / "out")
