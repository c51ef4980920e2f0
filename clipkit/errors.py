"""What can go wrong, each with its exit code, and the one place that turns an error into a line on stderr.

0 done · 1 a bug (traceback) · 2 the user can fix it · 3 too much bad data · 4 training went non-finite · 5 storage
· 6 a process hangs or is gone · 75 stopped by a signal and saved. Launchers of several processes turn each into 1; the
run's exit-rank*.json keep them.
"""

import atexit
import errno
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EIO)
"""What the operating system says when a disk, and not our code, is at fault."""


class ClipkitError(Exception):
    """An expected failure: its text says where, what it got, what it needs and what to type."""

    exit_code = 1
    alone = False
    """Did it happen to this rank, maybe to no other?"""


class UserError(ClipkitError):
    """The user can fix it: a setting, a path, an argument."""

    exit_code = 2


class BadData(ClipkitError):
    """More samples are unreadable than `data.max_bad` allows."""

    exit_code = 3


class NonFinite(ClipkitError):
    """Gradients or weights are not finite numbers, or the loss leaps, and going back did not help."""

    exit_code = 4


class StorageError(ClipkitError):
    """A file could not be written, or what was written is damaged."""

    exit_code = 5


class OutOfTime(ClipkitError):
    """The time for an evaluation is over; the training goes on without what is left of it."""


class RankLost(ClipkitError):
    """A process of the run hangs or is gone."""

    exit_code = 6


class Stopped(ClipkitError):
    """A signal asked the run to stop; its state is saved."""

    exit_code = 75


def from_worker(error: ClipkitError) -> ClipkitError:
    """The error as it was raised in a worker of a data loader, which hands it on wrapped in its traceback."""
    plain = type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip())
    plain.alone = True
    return plain


REASON = 40  # the most letters of a reason; what is longer is some library's prose


def reason_of(error: ValueError | OSError) -> str:
    """Why a sample could not be read, in a few words that can be counted."""
    if isinstance(error, OSError):
        return error.strerror or "cut short"
    return str(error) if 0 < len(str(error)) < REASON else type(error).__name__


def told(reasons: Mapping[str, int]) -> str:
    """`reason: count, ...` in the order of the alphabet."""
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))


def program(work: Callable[..., Any], *args: Any) -> NoReturn:
    """`guard` as the last that a process does: a process alone ends at once, without the second that the interpreter
    takes to free all modules where torch is among them; one under a profiler, or a rank that has failed, as ever."""
    try:
        guard(work, *args)
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") == "1" and sys.getprofile() is None:
            _leave(end.code)
        raise


def guard(work: Callable[..., Any], *args: Any) -> NoReturn:
    """Call `work(*args)` and raise SystemExit: expected errors as one line on stderr and their exit code.

    In a multi-process run one process of each node prints what the user can fix (it is the same on all of them),
    and every rank prints what may have happened to it alone.
    """
    try:
        code = _code_of(work, *args)
        sys.stdout.flush()
    except ClipkitError as error:
        rank = int(os.environ.get("RANK", "0"))
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 or error.exit_code not in (2, 75) or error.alone:
            where = f" (rank {rank})" if rank else ""
            print(f"clipkit{where}: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except BrokenPipeError:  # the reader of our stdout has gone, as in `clipkit search ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        print(f"clipkit: {error.filename or 'storage'}: {error.strerror}", file=sys.stderr, flush=True)
        code = StorageError.exit_code
    _end(code)


def _code_of(work: Callable[..., Any], *args: Any) -> str | int | None:
    try:
        work(*args)
    except SystemExit as end:  # of typer, whatever the command did
        return end.code
    return 0


def _end(code: str | int | None) -> NoReturn:
    """End the process; a rank that is done does so at once, since gloo's threads abort the interpreter now and then as
    it takes itself apart (pytorch pull request 179291)."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and not code:
        _leave(code)
    sys.exit(code)


def _leave(code: str | int | None) -> NoReturn:
    """End the process now: threads are waited for, and what asked to be called at the end is called."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it, or there is no room for it: that was told before
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
