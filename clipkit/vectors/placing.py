"""Folders that are written beside their place and renamed into it when they are whole."""

import ctypes
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from clipkit.errors import UserError

CWD, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""
PAUSE_S = 0.5
"""How long a folder that is being replaced may be missing before its writer counts as killed."""


@contextmanager
def beside(place: Path, replace: bool = False) -> Iterator[Path]:
    """An empty folder to write into. When the block ends well it is on disk and becomes `place`; after an error it is
    gone. What other processes of this machine left there when they were killed is removed.

    With `replace` it takes the place of the folder that is there: a reader finds the old one or the new one, whole.
    Raises: UserError when something else is there, or with `replace` nothing.
    """
    refuse(place, replace)
    named, place = place, place.resolve()  # a link stays one, and what it leads to is replaced
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place)
    work = place.with_name(f".{place.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    work.mkdir()
    try:
        yield work
        sync(work)
        refuse(named, replace)  # it may have come or gone meanwhile
        if replace:
            _swap(work, place)
        else:
            if place.is_dir():
                place.rmdir()
            work.rename(place)
        _sync_one(place.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def refuse(place: Path, replace: bool = False) -> None:
    """Raises: UserError when a folder may not be written at `place`: something is there, or with `replace` nothing, or
    it is the working folder, which would be gone afterwards."""
    recover(place)
    if place.resolve() == Path.cwd():
        raise UserError(f"{place}: is the folder you are in, and cannot be replaced; type it from another folder")
    if replace and not place.is_dir():
        raise UserError(f"{place}: no such folder, there is nothing to replace")
    if not replace and place.exists() and (place.is_file() or any(place.iterdir())):
        raise UserError(f"{place}: already exists and is left as it is; remove it, or give another --out")


def recover(place: Path) -> None:
    """Bring the old folder back where `_swap` was killed between its two renames."""
    place = place.resolve()
    if not place.exists() and _old(place).is_dir():
        time.sleep(PAUSE_S)  # a writer that is alive is done with its second rename then
        if not place.exists():
            with suppress(FileNotFoundError):  # another reader was faster
                _old(place).rename(place)


def sync(folder: Path) -> None:
    """Wait until all files of a folder, and their names, are on disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(work: Path, place: Path) -> None:
    """Put `work` at `place`, and what was there at `work`: at once where the system can, else in two renames."""
    if _exchanged(work, place):
        return
    old = _old(place)
    shutil.rmtree(old, ignore_errors=True)
    place.rename(old)
    work.rename(place)
    old.rename(work)


def _exchanged(one: Path, two: Path) -> bool:
    """Two names change their folders at once: Linux can since 3.15, on most of its file systems."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if rename(CWD, os.fsencode(one), CWD, os.fsencode(two), EXCHANGE) == 0:
        return True
    fault = ctypes.get_errno()
    if fault in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(fault, os.strerror(fault), str(two))


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _sweep(place: Path) -> None:
    host = socket.gethostname()
    for path in place.parent.glob(f".{place.name}.{host}-*.tmp"):
        process = path.name.removesuffix(".tmp").rpartition("-")[2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True)
