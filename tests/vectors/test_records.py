"""Records in SQLite: what was written comes back, and a condition is an expression over columns and nothing else."""

import datetime
import decimal
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.errors import StorageError, UserError
from clipkit.vectors import recording, records
from clipkit.vectors.records import Records

N = 60
LANGS = ("en", "de", None)


def table(first: int = 0, n: int = N) -> pa.Table:
    numbers = range(first, first + n)
    return pa.table({
        "key": [f"k{i}" for i in numbers],
        "width": [i * 10 for i in numbers],
        "lang": [LANGS[i % 3] for i in numbers],
        "caption": [f"a red car, number {i}" for i in numbers],
        "score": [float("nan") if i % 5 == 0 else i / 7 for i in numbers],
        "group": [i % 4 for i in numbers],
    })  # fmt: skip


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("records") / records.FILE
    assert recording.write(path, [table(0, 25), table(25, N - 25)]) == N
    return Records(path)


def refused(held: Records, condition: str, **more: Any) -> str:
    """What is said of a condition, without its repetition."""
    with pytest.raises(UserError) as error:
        held.where(condition, **more)
    said = str(error.value)
    shown = condition if len(condition) <= 200 else f"{condition[:200]}..."
    assert said.startswith(f"where {shown!r}: ")
    return said.removeprefix(f"where {shown!r}: ")


def test_records_come_back_in_the_order_asked_for(held: Records) -> None:
    assert len(held) == N and list(held.columns) == ["id", *table().column_names]
    assert held.columns["width"] == "INTEGER" and held.columns["score"] == "REAL" and held.columns["lang"] == "TEXT"
    wanted = [31, 2, 59, 2, 0]
    rows = table().to_pylist()
    for number, row in zip(wanted, held.get(wanted), strict=True):
        told = {**rows[number], "id": number, "score": None if number % 5 == 0 else rows[number]["score"]}
        assert row == told
    assert held.get([]) == []


def test_more_numbers_than_sqlite_binds_are_asked_for_in_portions(tmp_path: Path) -> None:
    n = records.AT_ONCE * 2 + 3
    recording.write(tmp_path / "r", [table(0, n)])
    held = Records(tmp_path / "r")
    assert [row["id"] for row in held.get(range(n - 1, -1, -1))] == list(range(n - 1, -1, -1))
    assert held.with_keys([f"k{i}" for i in range(n)]) == {f"k{i}": [i] for i in range(n)}


@pytest.mark.parametrize("number", [-1, N, 1 << 63, -(1 << 70)])
def test_a_number_that_is_not_there_is_named(held: Records, number: int) -> None:
    with pytest.raises(UserError) as error:
        held.get([3, number])
    assert str(error.value) == f"id {number}: no such row; there are {N}, counted from 0"


def test_keys_are_found_with_all_their_rows(tmp_path: Path) -> None:
    recording.write(tmp_path / "r", [pa.table({"key": ["a", "b", "a", "é", "c"]})])
    held = Records(tmp_path / "r")
    assert held.with_keys(["a", "é", "nowhere", "\ud800", "'; drop table items"]) == {"a": [0, 2], "é": [3]}
    assert held.with_keys([]) == {}


def test_keys_that_are_numbers_are_found_by_their_text(tmp_path: Path) -> None:
    recording.write(tmp_path / "r", [pa.table({"key": [7, 8]})])
    assert Records(tmp_path / "r").with_keys(["8"]) == {"8": [1]}


CONDITIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "width > 512": lambda row: row["width"] > 512,
    "width > 100 and lang = 'en'": lambda row: row["width"] > 100 and row["lang"] == "en",
    "lang is null": lambda row: row["lang"] is None,
    "lang != 'en'": lambda row: row["lang"] not in ("en", None),  # NULL is neither equal nor unequal
    "not (lang = 'en')": lambda row: row["lang"] not in ("en", None),
    "lang in ('en', 'de') or width = 0": lambda row: row["lang"] is not None or row["width"] == 0,
    "score is null": lambda row: row["score"] != row["score"],
    "score < 1e999": lambda row: row["score"] == row["score"],
    '"group" = 3': lambda row: row["width"] // 10 % 4 == 3,
    "[group] = 3 and `width` > 10": lambda row: row["width"] // 10 % 4 == 3 and row["width"] > 10,
    '"GROUP" = 3': lambda row: row["width"] // 10 % 4 == 3,
    "caption like '%NUMBER 7'": lambda row: row["width"] == 70,
    "caption glob '*number 7'": lambda row: row["width"] == 70,
    "width between 100 and 120": lambda row: 100 <= row["width"] <= 120,
    "length(caption) = 19": lambda row: len(row["caption"]) == 19,
    "id in (3, 4)": lambda row: row["width"] in (30, 40),
    "items.width = 30": lambda row: row["width"] == 30,
    "caption = 'it''s -- /* ; select' or width = 10": lambda row: row["width"] == 10,
    "case when width > 30 then 0 else 1 end": lambda row: row["width"] <= 30,
    "width = '30'": lambda row: row["width"] == 30,
    "'日本' = '日本'": lambda row: True,
    "null": lambda row: False,
    "1": lambda row: True,
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_finds_what_python_finds(held: Records, condition: str) -> None:
    wanted = [i for i, row in enumerate(table().to_pylist()) if CONDITIONS[condition](row)]
    found = held.where(condition)
    assert found.dtype == np.int64 and found.tolist() == wanted


NEEDED = records.EXAMPLE
ONLY = "only the columns, operators and these functions are allowed: abs, coalesce, "
BAD = {
    "": NEEDED,
    " \n": NEEDED,
    "1 union select key from items": f"{NEEDED}; got 'select'",
    "(SELECT 1)": f"{NEEDED}; got 'SELECT'",
    "exists(select 1)": f"{NEEDED}; got 'select'",
    "width in (values (1))": f"{NEEDED}; got 'values'",
    "with recursive a(x) as (select 1 union all select x from a) select 1": f"{NEEDED}; got 'with'",
    "1; drop table items": f"{NEEDED}; got ';'",
    "1 -- and so on": f"{NEEDED}; got '--'",
    "1 /* and so on": f"{NEEDED}; got '/*'",
    "[']/*' > 1": f"{NEEDED}; got '/*'",
    "width = ?": f"{NEEDED}; got '?'",
    "width = :width": f"{NEEDED}; got ':'",
    "width = $1": f"{NEEDED}; got '$'",
    "width = @x": f"{NEEDED}; got '@'",
    "'open": f"{NEEDED}; got a quote that is not closed",
    'width > 1 and "open': f"{NEEDED}; got a quote that is not closed",
    "`open": f"{NEEDED}; got '`'",
    "[open": f"{NEEDED}; got '['",
    "(width > 1": "its brackets do not match",
    "width > 1)": "its brackets do not match",
    "1) or (1": "its brackets do not match",
    "1) group by (width": "its brackets do not match",
    "')' = ')')": "its brackets do not match",
    "\0": "it holds letters that no text has",
    "'\ud800' = 1": "it holds letters that no text has",
    "x" * 10_001: "at most 10,000 letters are read, got 10,001",
    "wdith > 3": "no such column: wdith; did you mean 'width'? there are: key, width, lang, caption, score, group",
    '"wdith" > 3': "no such column: wdith; did you mean 'width'? there are: key, width, lang, caption, score, group; "
    "texts stand in single quotes",
    '"red" = caption': "no such column: red; there are: key, width, lang, caption, score, group; texts stand in single "
    "quotes",
    "width >": "ends too early, or has an empty bracket",
    "()": "ends too early, or has an empty bracket",
    "group = 1": 'near "group": syntax error',
    "1 order by id": 'near "order": syntax error',
    "1 limit 1": 'near "limit": syntax error',
    "width in items": "sub-select returns",
    "key in sqlite_master": ONLY,
    "sqlite_master.name = 1": "no such column: sqlite_master.name",
    "load_extension('x')": ONLY,
    "randomblob(1000000000)": ONLY,
    "zeroblob(1000000000)": ONLY,
    "printf('%1000000000d', 1)": ONLY,
    "hex(key)": ONLY,
    "replace(caption, 'a', caption)": ONLY,
    "writefile('a', 'b')": ONLY,
    "readfile('/etc/passwd')": ONLY,
    "fts3_tokenizer('x')": ONLY,
    "random() > 0": ONLY,
    "sqlite_version()": ONLY,
    "pragma_table_info('items')": ONLY,
    "caption regexp 'a'": ONLY,
    "caption match 'a'": ONLY,
    "sum(width) > 1": ONLY,
    "row_number() over () > 1": ONLY,
    "raise(ignore)": "RAISE() may only be used within a trigger",
    "caption like '" + "%a" * 150 + "'": "LIKE or GLOB pattern too complex",
    "caption glob '" + "*a" * 150 + "'": "LIKE or GLOB pattern too complex",
    "+".join(["1"] * 500): "Expression tree is too large",
    "(" * 4000 + "1" + ")" * 4000: "parser stack overflow",
    "not " * 2000 + "1": "parser stack overflow",
}


@pytest.mark.parametrize("condition", BAD)
def test_what_is_no_condition_is_refused_and_named(held: Records, condition: str) -> None:
    before = held.path.read_bytes()
    assert refused(held, condition).startswith(BAD[condition])
    assert held.path.read_bytes() == before and list(held.path.parent.iterdir()) == [held.path]
    assert held.where("width = 30").tolist() == [3]  # the connection is as good as before


@given(st.text("abw1 ()[]'\"`-/*;<>=.,|selctunio#$?\n", max_size=40))
def test_any_text_is_a_condition_or_refused(held: Records, text: str) -> None:
    try:
        found = held.where(text, limit_s=1)
    except UserError as error:
        assert str(error).startswith(f"where {text!r}: ")
    else:
        assert set(found.tolist()) <= set(range(N)) and (np.diff(found) > 0).all()


def test_a_condition_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    long = "ab" * 20_000
    recording.write(tmp_path / "r", [pa.table({"key": ["a"] * 2000, "caption": [long] * 2000})])
    held = Records(tmp_path / "r")
    slow = " or ".join(["caption || caption || caption like '%b%a%bb'"] * 60)
    began = time.monotonic()
    assert refused(held, slow, limit_s=0.2) == "takes longer than 0.2 s; ask for something simpler"
    assert time.monotonic() - began < 30  # minutes, were it not stopped


def test_large_values_cannot_be_made(tmp_path: Path) -> None:
    recording.write(tmp_path / "r", [pa.table({"key": ["a"], "caption": ["x" * 1_000_000]})])
    assert refused(Records(tmp_path / "r"), "||".join(["caption"] * 100) + " = 1") == "string or blob too big"


def test_a_condition_holds_up_nobody_who_looks_up(held: Records) -> None:
    """Many threads get the same as one."""
    wanted = [(held.get([i])[0]["key"], held.where(f"width > {i * 10}").tolist()) for i in range(N)]
    found: list[Any] = [None] * N

    def ask(start: int) -> None:
        for i in range(start, N, 6):
            found[i] = held.get([i])[0]["key"], held.where(f"width > {i * 10}").tolist()

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_records_outlive_their_file(tmp_path: Path) -> None:
    recording.write(tmp_path / "r", [table()])
    held = Records(tmp_path / "r")
    recording.write(tmp_path / "new", [pa.table({"key": ["other"]})])
    (tmp_path / "new").replace(tmp_path / "r")
    assert held.get([1])[0]["key"] == "k1" and len(held.where("1")) == N and len(Records(tmp_path / "r")) == 1


def test_records_that_nobody_holds_are_closed(tmp_path: Path) -> None:
    recording.write(tmp_path / "r", [table()])

    def opened() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{name}").endswith("/r") for name in os.listdir("/proc/self/fd"))

    held = Records(tmp_path / "r")
    connection = held._reading
    assert opened() == 2
    del held
    assert opened() == 0
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):  # and not just forgotten, which Python 3.13 tells of
        connection.execute("select 1")


def test_values_of_all_kinds_are_kept_as_sqlite_can(tmp_path: Path) -> None:
    day = datetime.date(2024, 2, 29)
    kinds = {
        "truth": pa.array([True, None]),
        "day": pa.array([day, None]),
        "moment": pa.array([datetime.datetime(2024, 2, 29, 12, 30), None], pa.timestamp("ns")),
        "price": pa.array([decimal.Decimal("12.50"), None]),
        "raw": pa.array([b"\x00\xff", None]),
        "tags": pa.array([["a", "é"], None]),
        "boxes": pa.array([{"x": 1.5, "when": day, "bad": float("nan")}, None]),
        "large": pa.array([(1 << 64) - 1, 5], pa.uint64()),
        "half": pa.array([np.float16(0.5), None], pa.float16()),
        "word": pa.array(["en", None]).dictionary_encode(),
        "long": pa.array(["x", None], pa.large_string()),
        "none": pa.nulls(2),
    }
    recording.write(tmp_path / "r", [pa.table({"key": ["a", "b"], **kinds})])
    held = Records(tmp_path / "r")
    one, two = held.get([0, 1])
    assert one == {
        "id": 0, "key": "a", "truth": 1, "day": "2024-02-29", "moment": "2024-02-29 12:30:00.000000000", "price": 12.5,
        "raw": "00ff", "tags": '["a", "é"]', "boxes": '{"x": 1.5, "when": "2024-02-29", "bad": null}',
        "large": float((1 << 64) - 1), "half": 0.5, "word": "en", "long": "x", "none": None,
    }  # fmt: skip
    assert two == dict.fromkeys(one) | {"id": 1, "key": "b", "large": 5}
    for condition in (
        "truth", "day > '2024-01-01'", "moment like '2024-02-29 12:%'", "price > 9", "raw = '00ff'", "large > 1e19",
        "json_extract(tags, '$[1]') = 'é'", "boxes ->> '$.x' = 1.5", "boxes -> 'bad' = 'null'", "half < 1",
    ):  # fmt: skip
        assert held.where(condition).tolist() == [0], condition


def test_names_that_sqlite_cannot_tell_apart_are_kept_apart(tmp_path: Path) -> None:
    odd = {"id": ["x"], "ID": [1], "Width": [2], "width": [3], 'a "b" ]': [4], "select": [5], "é": [6]}
    recording.write(tmp_path / "r", [pa.table({"key": ["a"], **odd})])
    held = Records(tmp_path / "r")
    assert held.get([0]) == [
        {"id": 0, "key": "a", "id_": "x", "ID__": 1, "Width": 2, "width_": 3, 'a "b" ]': 4, "select": 5, "é": 6}
    ]
    for condition in ("id_ = 'x'", "width_ = 3", '"a ""b"" ]" = 4', '"select" = 5', "é = 6"):
        assert held.where(condition).tolist() == [0], condition


def test_later_tables_may_have_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "r"
    assert recording.write(path, [pa.table({"key": ["a"], "x": [1]}), pa.table({"y": ["b"], "key": ["c"]})]) == 2
    assert recording.write(path, [pa.table({"key": ["d"], "X": [5], "z": [0.5]})], first=2) == 3
    held = Records(path)
    assert held.get([0, 1, 2]) == [
        {"id": 0, "key": "a", "x": 1, "y": None, "z": None},
        {"id": 1, "key": "c", "x": None, "y": "b", "z": None},
        {"id": 2, "key": "d", "x": 5, "y": None, "z": 0.5},
    ]
    assert held.with_keys(["d"]) == {"d": [2]}


def test_parts_of_any_size_make_the_same_file(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recording.write(whole, [table()])
    for i in range(0, N, 7):
        pq.write_table(table(i, min(7, N - i)), tmp_path / f"{i:03d}.parquet")
    recording.write(parts, (pq.read_table(path) for path in sorted(tmp_path.glob("*.parquet"))))
    assert Records(whole).get(range(N)) == Records(parts).get(range(N))


def test_rows_without_a_key_get_one(tmp_path: Path) -> None:
    recording.write(tmp_path / "paths", [pa.table({"image_path": ["a/1.jpg", "b.jpg"]})])
    assert [row["key"] for row in Records(tmp_path / "paths").get([0, 1])] == ["a/1.jpg", "b.jpg"]
    recording.write(tmp_path / "bare", [pa.table({"x": [1, 2]}), pa.table({"x": [3]})])
    assert [row["key"] for row in Records(tmp_path / "bare").get([0, 1, 2])] == ["0", "1", "2"]


def test_no_rows_are_records_too(tmp_path: Path) -> None:
    for name, tables in (("none", []), ("empty", [table(0, 0)])):
        assert recording.write(tmp_path / name, tables) == 0
        held = Records(tmp_path / name)
        assert len(held) == 0 and held.where("key = 'a'").tolist() == [] and held.with_keys(["a"]) == {}


def test_a_file_that_is_missing_or_damaged_says_so(tmp_path: Path) -> None:
    path = tmp_path / records.FILE
    with pytest.raises(StorageError) as error:
        Records(path)
    assert str(error.value) == f"{path}: missing; build the index again"
    path.write_bytes(b"")
    with pytest.raises(StorageError) as error:
        Records(path)
    assert str(error.value) == f"{path}: damaged (no table of items); build the index again"
    path.write_bytes(b"junk" * 1000)
    with pytest.raises(StorageError) as error:
        Records(path)
    assert str(error.value) == f"{path}: damaged (file is not a database); build the index again"


def test_a_file_cut_short_is_damage_and_no_fault_of_the_condition(tmp_path: Path) -> None:
    path = tmp_path / records.FILE
    recording.write(path, [table(0, 3000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(StorageError, match=r"damaged \(database disk image is malformed\); build the index again"):
        held = Records(path)
        held.where("caption like '%9%'")
