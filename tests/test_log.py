"""What a run tells: messages from the first process, progress as plain lines, and rows that survive a kill."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit import log
from clipkit.log import Progress, Rows, duration, read_rows, say


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.5, "1 s"), (59.4, "59 s"), (59.5, "1:00"), (187, "3:07"), (3599.6, "1:00:00"), (7509, "2:05:09")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        say(f"rank {rank}")
        with Progress("work", 2) as progress:
            progress.update(2)
    assert capsys.readouterr().err.startswith("rank 0\nwork 2/2 in ")
    assert "1" not in capsys.readouterr().err


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with Progress("train", 0, start=4) as progress:
        progress.resize(10)
        for done in range(5, 11):
            now[0] += 6
            progress.update(done, f"loss {done}")
    assert capsys.readouterr().err.splitlines() == [
        "train 6/10, 24 s left  loss 6",
        "train 8/10, 12 s left  loss 8",
        "train 10/10 in 36 s  loss 10",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("train", 3) as progress:
        progress.resize(4)
        progress.update(4, "loss 1")
    assert "train" in sys.stderr.getvalue() and "4/4" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def write(path: Path, last: int, *steps: int) -> None:
    rows = Rows(path, last)
    for step in steps:
        rows.write({"step": step, "text": "ä\u2028\n"})
    rows.file.close()


def test_rows_come_back_and_a_resumed_run_drops_those_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3, 4)
    write(path, 2, 3, 3)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 3]
    assert all(row["text"] == "ä\u2028\n" for row in read_rows(path))


@pytest.mark.parametrize("tail", ['{"step": 2', "\0\0\0", "3", '"x"', "null", "{}", "[]"])
def test_a_row_that_a_kill_cut_short_was_never_written(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1)
    with path.open("a") as file:
        file.write(tail)
    write(path, 9, 2)
    assert [row["step"] for row in read_rows(path)] == [1, 2]


def test_each_row_is_readable_as_soon_as_it_is_written(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "x.jsonl", 0)
    rows.write({"step": 1})
    assert read_rows(tmp_path / "x.jsonl") == [{"step": 1}]
    rows.file.close()


def test_no_file_has_no_rows_and_blank_lines_are_none(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "x.jsonl") == []
    (tmp_path / "x.jsonl").write_text("\n" + json.dumps({"step": 1}) + "\n\n")
    assert read_rows(tmp_path / "x.jsonl") == [{"step": 1}]


def test_work_goes_on_when_nobody_listens(tmp_path: Path) -> None:
    source = (
        "import pathlib, sys, time\n"
        "from clipkit.log import Progress, say\n"
        "sys.stdin.readline()\n"
        "say('one'), say('two'), Progress('p', 2, every_s=0).update(1)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", source, str(tmp_path / "done")], stdin=-1, stderr=-1, text=True)
    assert child.stderr and child.stdin
    child.stderr.close()
    child.stdin.write("\n")
    child.stdin.close()
    assert child.wait(60) == 0 and (tmp_path / "done").exists()
