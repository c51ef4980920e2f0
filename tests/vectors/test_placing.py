"""Folders come into their place whole, or not at all."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.errors import UserError
from clipkit.vectors import placing


def write(folder: Path, text: str) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text(text)


def test_a_folder_is_there_when_the_block_has_ended(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "v"
    with placing.beside(place) as work:
        write(work, "new")
        assert not place.exists() and work.parent == place.parent
    assert (place / "deep" / "file").read_text() == "new"
    assert [path.name for path in place.parent.iterdir()] == ["v"]


@pytest.mark.parametrize("there", [False, True])
def test_after_an_error_all_is_as_it_was(tmp_path: Path, there: bool) -> None:
    place = tmp_path / "v"
    if there:
        place.mkdir()
        write(place, "old")
    with pytest.raises(ZeroDivisionError), placing.beside(place, replace=there) as work:
        write(work, "new")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == (["v"] if there else [])
    assert not there or (place / "deep" / "file").read_text() == "old"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(placing, "_exchanged", lambda one, two: False)
    place = tmp_path / "v"
    place.mkdir()
    write(place, "old")
    reader = (place / "deep" / "file").open()
    with placing.beside(place, replace=True) as work:
        write(work, "new")
    assert (place / "deep" / "file").read_text() == "new" and reader.read() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
    reader.close()


def test_what_was_cut_between_two_renames_is_brought_back(tmp_path: Path) -> None:
    place, old = tmp_path / "v", tmp_path / ".v.old"
    old.mkdir()
    write(old, "old")
    placing.recover(place)
    assert (place / "deep" / "file").read_text() == "old" and not old.exists()
    placing.recover(place)
    assert place.is_dir()


def test_a_writer_between_its_two_renames_is_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, old = tmp_path / "v", tmp_path / ".v.old"
    old.mkdir()
    write(old, "old")

    def pause(_: float) -> None:  # in which the writer renames the new folder
        place.mkdir()
        write(place, "new")

    monkeypatch.setattr(placing.time, "sleep", pause)
    placing.recover(place)
    assert (place / "deep" / "file").read_text() == "new" and old.is_dir()


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk" / "v").mkdir(parents=True)
    write(tmp_path / "disk" / "v", "old")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "v")
    with placing.beside(link, replace=True) as work:
        write(work, "new")
    assert link.is_symlink() and (tmp_path / "disk" / "v" / "deep" / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "disk", "file", "link", "v"]


@pytest.mark.parametrize("replace", [False, True])
def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error, placing.beside(Path("."), replace):
        raise AssertionError
    assert str(error.value) == ".: is the folder you are in, and cannot be replaced; type it from another folder"
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    host = socket.gethostname()
    stale, alive, far = (
        tmp_path / f".v.{who}.tmp" for who in (f"{host}-{gone.pid}", f"{host}-{os.getppid()}", "far-1")
    )
    for folder in (stale, alive, far):
        folder.mkdir()
    with placing.beside(tmp_path / "v") as work:
        write(work, "new")
    assert not stale.exists() and alive.exists() and far.exists()


def test_what_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "v"
    place.mkdir()
    with placing.beside(place) as work:  # an empty folder may be written into
        write(work, "mine")
    (tmp_path / "file").write_text("mine")
    for there in (place, tmp_path / "file"):
        with pytest.raises(UserError) as error, placing.beside(there):
            raise AssertionError
        assert str(error.value) == f"{there}: already exists and is left as it is; remove it, or give another --out"
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'none'}: no such folder, there is nothing to replace")):
        placing.refuse(tmp_path / "none", replace=True)


def test_another_folder_that_came_meanwhile_is_left(tmp_path: Path) -> None:
    place = tmp_path / "v"
    with pytest.raises(UserError, match="already exists"), placing.beside(place):
        place.mkdir()
        write(place, "other")
    assert (place / "deep" / "file").read_text() == "other" and [path.name for path in tmp_path.iterdir()] == ["v"]


KILLED = """
import sys
from pathlib import Path
from clipkit.vectors import placing
with placing.beside(Path(sys.argv[1]), replace=True) as work:
    (work / "file").write_text("new")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_the_old_folder(tmp_path: Path) -> None:
    place = tmp_path / "v"
    place.mkdir()
    write(place, "old")
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin and child.stdout and child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert (place / "deep" / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    with placing.beside(place, replace=True) as work:
        write(work, "new")
    assert (place / "deep" / "file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["v"]
