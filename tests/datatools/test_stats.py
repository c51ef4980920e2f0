"""The table of samples and what is computed from it: hand-worked numbers, unified columns, a cache, messages."""

import builtins
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.datatools.curate import metadata, metadata_read
from clipkit.datatools.curate.filter import filter
from clipkit.datatools.curate.metadata import column_names, table_of
from clipkit.datatools.curate.metadata_read import unify
from clipkit.datatools.curate.stats import stats
from clipkit.errors import StorageError, UserError
from clipkit.shards import Shards
from tests.datatools.curating import BROKEN, one, write
from tests.samples import encoded, shape, write_shard


def small(folder: Path) -> str:
    """Seven samples in two shards; number 2 is no picture, 5 has an empty caption, 6 none."""
    first = [
        one(0, 40, 30, "a red circle", {"score": 1, "site": "x", "shown": {"times": 3}, "width": 7}),
        one(1, 80, 60, "a red circle", {"score": 2.5, "site": "y", "shown": {"times": 4}}),
        one(2, 50, 50, "broken", {"score": 3, "site": "x"}, picture=BROKEN),
        one(3, 20, 90, "one two three four", {"score": 4, "site": None, "list": [1, 2], "ok": True}),
    ]
    second = [
        one(4, 60, 60, "naïve", {"score": None, "site": "x", "ok": False}),
        one(5, 60, 60, "  ", {"score": 10, "site": 5, "Site": "clash"}),
        one(6, 60, 60, None, None),
    ]
    return write(folder, first, second)


def rows(source: str, **more: Any) -> list[dict[str, Any]]:
    return pq.read_table(table_of(Shards(source), **more)).to_pylist()


def test_a_row_says_what_the_sample_holds(tmp_path: Path) -> None:
    source = small(tmp_path / "s")
    found = rows(source)
    assert [row["number"] for row in found] == list(range(7))
    assert [row["key"] for row in found] == [f"{i:05d}" for i in range(7)]
    assert [row["shard"] for row in found] == ["000.tar"] * 4 + ["001.tar"] * 3
    data = encoded(shape(0, 40, 30)[0])
    assert found[0] == {
        "number": 0, "shard": "000.tar", "key": "00000", "caption": "a red circle", "caption_words": 3,
        "caption_chars": 12, "width": 40, "height": 30, "bytes": len(data), "format": "JPEG",
        "sha1": hashlib.sha1(data).hexdigest(), "problem": None,
        "Site": None, "json_width": 7, "ok": None, "score": 1.0, "shown_times": 3, "site_2": "x",
    }  # fmt: skip
    assert [row["score"] for row in found] == [1.0, 2.5, 3.0, 4.0, None, 10.0, None]
    assert [row["ok"] for row in found] == [None, None, None, True, False, None, None]
    assert [row["site_2"] for row in found] == ["x", "y", "x", None, "x", "5", None]
    assert [row["Site"] for row in found] == [None] * 5 + ["clash", None]


def test_what_cannot_be_read_is_null_and_says_why(tmp_path: Path) -> None:
    found = rows(small(tmp_path / "s"))
    assert [row["problem"] for row in found] == [None, None, "not a picture", None, None, "empty caption", None]
    assert found[2]["width"] is None and found[2]["height"] is None and found[2]["bytes"] == len(BROKEN)
    assert found[2]["caption"] == "broken"  # what can be read is there
    assert found[5]["caption"] is None and found[5]["caption_words"] is None and found[5]["width"] == 60
    assert found[6]["caption"] is None


def test_each_kind_of_damage_has_its_reason(tmp_path: Path) -> None:
    source = write(
        tmp_path / "s",
        [
            one(0, caption=b"\xff\xfe"),
            one(1, caption="c", facts=b"{"),
            one(2, caption="c", facts=b"[1]"),
            one(3, caption="c", facts=b'{"a": NaN, "b": "\\ud800", "c": 36893488147419103232, "d": 1e999}'),
            one(4, 60, 1, "c"),
        ],
    )
    found = rows(source)
    assert [row["problem"] for row in found] == ["caption is not UTF-8", "broken json", None, None, "too small"]
    assert (found[3]["a"], found[3]["b"], found[3]["c"], found[3]["d"]) == (None, "?", "36893488147419103232", None)


def test_a_shard_cut_short_since_it_was_indexed_is_told(tmp_path: Path) -> None:
    source = small(tmp_path / "s")
    held = Shards(source)
    os.truncate(tmp_path / "s/000.tar", held.span(0, 3, "image")[0] + 10)
    found = pq.read_table(table_of(held)).to_pylist()
    assert [row["problem"] for row in found][:4] == [None, None, "not a picture", "cut short"]


@pytest.mark.parametrize(("part", "workers"), [(1, 1), (2, 1), (5, 1), (3, 2)])
def test_any_parts_and_workers_make_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, workers: int
) -> None:
    source = small(tmp_path / "s")
    wanted = rows(source)
    for path in (tmp_path / "cache/clipkit/tables").glob("*.parquet"):
        path.unlink()
    monkeypatch.setattr(metadata_read, "PART", part)
    monkeypatch.setattr(metadata_read, "ALONE", 0)
    monkeypatch.setattr(metadata, "GROUP", 4)
    found = rows(source, workers=workers)
    for row in wanted:  # a number as text depends on what else its part holds
        row["site_2"] = row["site_2"] and row["site_2"].removesuffix(".0")
    assert found == wanted


class Deadly(Shards):
    """Shards that a worker process does not survive."""

    def read(self, shard: int, row: int, member: str) -> bytes:
        if multiprocessing.parent_process() is not None:
            os._exit(9)
        return super().read(shard, row, member)


def test_a_killed_worker_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "s")
    monkeypatch.setattr(metadata_read, "PART", 2)
    monkeypatch.setattr(metadata_read, "ALONE", 0)
    with pytest.raises(UserError) as error:
        table_of(Deadly(source), workers=2)
    wanted = "a worker process was killed, perhaps for want of memory; start again with fewer --workers"
    assert str(error.value) == f"{source}: {wanted}"
    left = os.listdir(tmp_path / "cache/clipkit/tables")
    assert [Path(name).suffix for name in left] == [".lock"]


def test_a_second_call_reads_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "s")
    path = table_of(Shards(source))
    assert path.parent == tmp_path / "cache/clipkit/tables" and path.suffix == ".parquet"
    assert [one.name for one in path.parent.glob("[!.]*")] == [path.name]
    monkeypatch.setattr(metadata, "read_parts", None)
    assert table_of(Shards(source)) == path
    with pytest.raises(TypeError):
        table_of(Shards(source), "json:site")


def test_a_changed_shard_makes_a_new_table_and_so_do_others_of_the_same_name(tmp_path: Path) -> None:
    source = small(tmp_path / "s")
    path = table_of(Shards(source))
    assert table_of(Shards(small(tmp_path / "other"))) != path
    os.utime(tmp_path / "s/000.tar", ns=(1, 1))
    assert table_of(Shards(source)) != path


def test_a_killed_build_leaves_no_half_table(tmp_path: Path) -> None:
    source = small(tmp_path / "s")
    path = table_of(Shards(source))
    wanted = path.read_bytes()
    path.unlink()
    left = path.with_name(f".{path.name}.work")
    left.mkdir()
    (left / "junk.arrow").write_bytes(b"half")
    assert table_of(Shards(source)).read_bytes() == wanted and not left.exists()


def test_a_place_without_captions_names_the_keys(tmp_path: Path) -> None:
    source = small(tmp_path / "s")
    with pytest.raises(UserError) as error:
        stats(source, caption="json:text")
    keys = "Site, list, ok, score, shown, site, width"
    wanted = f"{source}: --caption json:text finds no caption in any of 7 samples; the .json files have {keys}"
    assert str(error.value) == wanted
    assert list((tmp_path / "cache/clipkit/tables").glob("[!.]*")) == []
    with pytest.raises(UserError, match="^caption: 'txt' or 'json:KEY' is needed, got 'jpg'$"):
        stats(source, caption="jpg")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "s")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="tables/.*parquet: the table of the samples cannot be written"):
        table_of(Shards(source))


def test_keys_beyond_the_most_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [one(i, caption="c", facts={f"own_{i}": 1, "shared": i, "both": 1}) for i in range(4)]
    source = write(tmp_path / "s", samples)
    for part in (4, 2):
        monkeypatch.setattr(metadata_read, "PART", part)
        monkeypatch.setattr(metadata_read, "MOST_KEYS", 3)
        monkeypatch.setattr(metadata, "MOST_KEYS", 3)
        os.utime(tmp_path / "s/000.tar", ns=(part, part))
        assert list(rows(source, workers=1)[0])[len(metadata_read.OURS) :] == ["both", "own_0", "shared"]
        told = f"{source}: {3 if part == 4 else 1} or more of the keys in .json files are no columns; the 3 most"
        assert told in capsys.readouterr().err


@given(st.lists(st.sampled_from(["null", "bool", "int", "float", "text"]), max_size=6), st.randoms())
def test_kinds_unify_in_any_order(kinds: list[str], dice: Any) -> None:
    def whole(some: list[str]) -> str:
        kind = "null"
        for other in some:
            kind = unify(kind, other)
        return kind

    wanted = whole(sorted(kinds))
    dice.shuffle(kinds)
    assert whole(kinds) == wanted


def test_names_of_columns_differ_in_more_than_case() -> None:
    called = column_names(["a\0b", "a_b", "A_B", "Number", "clip_score", "", "json_number"])
    assert called == {
        "": "json_", "A_B": "A_B", "Number": "json_Number", "a\0b": "a_b_2", "a_b": "a_b_3",
        "clip_score": "json_clip_score", "json_number": "json_number_2",
    }  # fmt: skip
    assert len({name.lower() for name in called.values()}) == 7


def test_stats_are_those_worked_by_hand(tmp_path: Path) -> None:
    found = stats(small(tmp_path / "s"))
    assert found["samples"] == 7 and found["left_out"] == {} and found["dropped"] == {}
    assert found["unreadable"] == {"empty caption": 1, "not a picture": 1}
    assert (found["captions"], found["distinct_captions"], found["distinct_pictures"]) == (5, 4, 7)
    columns = {row["column"]: row for row in found["columns"]}
    assert not {"number", "key", "sha1"} & set(columns)
    # widths 20 40 60 60 60 80
    assert columns["width"] == {
        "column": "width", "type": "integer", "nulls": 1, "min": 20, "p5": 25.0, "p25": 45.0, "median": 60.0,
        "p75": 60.0, "p95": 75.0, "max": 80, "mean": pytest.approx(320 / 6),
    }  # fmt: skip
    assert columns["site_2"]["nulls"] == 2 and columns["site_2"]["distinct"] == 3
    assert columns["site_2"]["top"] == [["x", 3], ["5", 1], ["y", 1]]
    assert columns["ok"]["top"] == [[False, 1], [True, 1]] and columns["score"]["max"] == 10.0
    assert columns["caption"]["top"][0] == ["a red circle", 2]
    assert json.loads(json.dumps(found)) == found and found["groups"] == [] and found["other_groups"] == 0
    assert pq.read_table(found["table"]).num_rows == 7


def test_groups_are_the_samples_of_each_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "s")
    found = stats(source, by="site_2")
    assert [(group["value"], group["samples"]) for group in found["groups"]] == [
        ("x", 3),
        (None, 2),
        ("5", 1),
        ("y", 1),
    ]
    first = found["groups"][0]
    assert (first["unreadable"], first["captions"], first["distinct_captions"]) == (1, 3, 3)
    score = next(row for row in first["columns"] if row["column"] == "score")
    assert (score["nulls"], score["min"], score["median"], score["max"]) == (1, 1.0, 2.0, 3.0)
    monkeypatch.setattr("clipkit.datatools.curate.stats.MOST_GROUPS", 1)
    found = stats(source, by="SITE_2")
    assert len(found["groups"]) == 1 and found["other_groups"] == 3


def test_stats_of_a_condition_and_a_selection(tmp_path: Path) -> None:
    source = small(tmp_path / "s")
    found = stats(source, where="score >= 2.5")
    assert found["samples"] == 4 and found["dropped"] == {"where is false": 1, "where is null": 2}
    filter(source, str(tmp_path / "sel"), where="width >= 60")
    found = stats(source, select=str(tmp_path / "sel"), where="ok is null")
    assert found["dropped"] == {"not selected": 4, "where is false": 1}
    assert found["samples"] == 2 and {c["column"]: c for c in found["columns"]}["width"]["min"] == 60
    found = stats(source, where="score > 1000")
    assert found["samples"] == 0 and found["columns"][2]["nulls"] == 0


def test_stats_of_one_sample_and_of_pictures_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "s", [one(0)])
    found = stats(source)
    assert (found["samples"], found["captions"], found["unreadable"]) == (1, 0, {})
    columns = {row["column"]: row for row in found["columns"]}
    assert columns["width"]["p5"] == columns["width"]["p95"] == 48 and columns["caption"]["top"] == []
    assert columns["caption_words"]["median"] is None


def test_an_unknown_column_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="^--by siet: no such column; the columns are number, shard, .*site_2, json_width$"
    ):
        stats(small(tmp_path / "s"), by="siet")


def test_without_duckdb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def no_duckdb(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return usual(name, *args, **kwargs)

    source = small(tmp_path / "s")
    monkeypatch.setattr(builtins, "__import__", no_duckdb)
    wanted = r"^conditions and statistics are computed by duckdb; type: pip install 'clipkit\[curate\]'$"
    with pytest.raises(UserError, match=wanted):
        stats(source)
    with pytest.raises(UserError, match=wanted):
        filter(source, str(tmp_path / "out"), where="width > 1")


def test_a_selection_of_other_shards_is_refused(tmp_path: Path) -> None:
    filter(small(tmp_path / "s"), str(tmp_path / "sel"), where="width >= 60")
    other = write_shard(tmp_path / "other.tar", [one(0, caption="c")])
    with pytest.raises(UserError, match="sel: selects from 000.tar, 001.tar, and not from these shards$"):
        stats(str(other), select=str(tmp_path / "sel"))
    filter(str(tmp_path / "s"), str(tmp_path / "few"), where="number = 6")
    with pytest.raises(UserError, match="few: keeps no sample of .*000.tar; make it again with a milder condition$"):
        stats(str(tmp_path / "s/000.tar"), select=str(tmp_path / "few"))
