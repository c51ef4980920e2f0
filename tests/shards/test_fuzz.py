"""A few hundred of the damaged files of eval/bench/fuzz.py, and its own parts."""

import importlib
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "eval" / "bench"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    sys.path.insert(0, str(BENCH))  # as Python does for the script
    try:
        return importlib.import_module("fuzz")
    finally:
        sys.path.remove(str(BENCH))


@pytest.mark.parametrize(
    ("kind", "number"), [("tar", 200), ("jpeg", 100), ("png", 80), ("webp", 40), ("gif", 40), ("bmp", 40)]
)
def test_damaged_files_are_read_or_refused_with_a_short_reason(
    fuzz: ModuleType, tmp_path: Path, kind: str, number: int
) -> None:
    told = Counter(fuzz.run_one(kind, 1, i, tmp_path) for i in range(number))
    assert not [one for one in told if one.startswith("! ")]
    assert len(told) >= 3, "some are read, and some refused for one reason or another"


@pytest.mark.parametrize("kind", ["tar", "jpeg", "png", "webp", "gif", "bmp"])
def test_files_without_damage_are_read_and_a_number_names_one_file(fuzz: ModuleType, tmp_path: Path, kind: str) -> None:
    mutations = sys.modules[fuzz.make.__module__]
    for data in mutations.originals(kind):
        (tmp_path / "x").write_bytes(data)
        assert (fuzz.read_tar(tmp_path / "x") if kind == "tar" else fuzz.read_picture(data, 0)) in ("whole", "read")
        assert mutations.mended(bytearray(data), kind) == data
    assert mutations.make(kind, 3, 7) == mutations.make(kind, 3, 7) != mutations.make(kind, 3, 8)
    assert mutations.make(kind, 3, 7) != mutations.make(kind, 4, 7)


def test_an_exception_is_told_with_its_kind(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(data: bytes, number: int) -> str:
        raise KeyError("boom")

    monkeypatch.setattr(fuzz, "read_picture", boom)
    assert fuzz.run_one("png", 0, 0, tmp_path) == "! KeyError: 'boom'"


def test_a_row_counts_what_came_of_items_and_what_must_not_be(fuzz: ModuleType) -> None:
    row = fuzz.Row("tar")
    row.see(0, "whole", 0.001, 50)
    row.see(1, "bad header, truncated", 0.5, 60)
    row.see(2, "! KeyError: 'x'", 0.1, 60)
    row.see(3, "whole", 11.0, 2500)
    assert (row.number, row.read, row.refused) == (4, 2, {"bad header": 1, "truncated": 1})
    assert (row.slowest, row.peak_mb) == (3, 2500)
    assert row.wrong == ["tar:2 KeyError: 'x'", "tar:3 took 11.0 s", "tar:3 had 2500 MB"]
    table = fuzz.told([row])
    assert "bad header: 1, truncated: 1" in table and "WRONG tar:3 had 2500 MB" in table


CHILD = """
import json, os, signal, sys, time
kind, seed, first, end = sys.argv[2].split(":")
for number in range(int(first), int(end)):
    print(json.dumps(["start", number]), flush=True)
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        time.sleep(100)
    print(json.dumps(["end", number, "read", 0.001, 1]), flush=True)
"""


def test_a_child_that_crashes_or_hangs_costs_one_item_which_is_named(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(fuzz, "__file__", str(tmp_path / "child.py"))
    monkeypatch.setattr(fuzz, "PATIENCE", 2)
    row = fuzz.Row("jpeg")
    fuzz.run_chunk(row, 0, 0, 6)
    assert (row.number, row.read) == (6, 4)
    crash, hang = row.wrong
    assert crash.startswith(f"jpeg:2 ended its process ({-signal.SIGSEGV})") and hang.startswith("jpeg:4 ran for over")


def test_the_command_ends_with_a_line_of_json(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "fuzz.py"), "--number", "100", "--kinds", "tar", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and summary["items"] == 30 and summary["pass"] is True
