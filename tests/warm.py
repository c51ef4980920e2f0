"""`clipkit` without the seconds of imports that each start costs: a process that has done them runs each command in a
fork of its own, with the arguments, folder, environment, input and outputs of who typed it."""

import functools
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

BEGINS_S = 120.0
SOCKET = "socket"


class Started:
    """A command that runs; `pid` is its process."""

    def __init__(self, place: Path, *arguments: str, environment: Mapping[str, str] = os.environ) -> None:
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(str(place / SOCKET))
        order = json.dumps([arguments, os.getcwd(), dict(environment)]).encode()
        socket.send_fds(self._line, [len(order).to_bytes(8, "little")], [0, 1, 2])
        self._line.sendall(order)
        self.pid = self._told()

    def has_ended(self) -> bool:
        """Need nobody `wait`?"""
        return bool(select.select([self._line], [], [], 0)[0])

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        with self._line:
            return self._told()

    def _told(self) -> int:
        number = b""
        while not number.endswith(b"\n"):
            if not (digit := self._line.recv(1)):
                raise EOFError("the process that runs commands has gone")
            number += digit
        return int(number)


@functools.cache
def folder() -> Path:
    """A folder with the program `clipkit`, to be put in front of the PATH; it goes when this process ends."""
    from tests import making

    place = Path(tempfile.mkdtemp(prefix="warm"))  # short: the name of a socket has some hundred letters at most
    program = place / "clipkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" --run "{place}" "$@"\n')
    program.chmod(0o755)
    (lives, _), (told, ready) = os.pipe(), os.pipe()  # the end that is not named stays open as long as we live
    command = [sys.executable, "-m", "tests.warm", "--serve", str(place)]
    paths = os.pathsep.join(filter(None, (str(making.ROOT), os.environ.get("PYTHONPATH"))))
    ends = [(os.POSIX_SPAWN_DUP2, lives, 0), (os.POSIX_SPAWN_DUP2, ready, 1)]
    os.posix_spawn(sys.executable, command, making.environment(PYTHONPATH=paths), file_actions=ends)
    os.close(lives)
    os.close(ready)
    assert select.select([told], [], [], BEGINS_S)[0] and os.read(told, 5) == b"ready"
    os.close(told)
    return place


def run(place: Path, *arguments: str) -> None:
    """Be the command: its end is the end of this process."""
    started = Started(place, *arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(started.pid, number))
    code = started.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(place: Path) -> None:
    """Run commands until stdin ends, which it does with the process that has started this one."""
    import accelerate  # noqa: F401
    import faiss  # noqa: F401
    import open_clip  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from clipkit import cli

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(place / SOCKET))
    listening.listen()
    os.write(1, b"ready")
    gc.collect()
    gc.freeze()  # what a fork does not look at it does not copy
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for who waits for a command
    while 0 not in (ready := select.select([0, listening], [], [])[0]):
        if listening in ready:
            line = listening.accept()[0]
            if not os.fork():
                listening.close()
                sys.argv = ["clipkit", *_forked(line)]
                cli.program()
            line.close()
    shutil.rmtree(place)
    os._exit(0)


def _forked(line: socket.socket) -> list[str]:
    """The arguments of a command, in the process that is to run it; another tells its id and waits for its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, fds, _, _ = socket.recv_fds(line, 8, 3)
    with line.makefile("rb") as told:
        arguments, cwd, environment = json.loads(told.read(int.from_bytes(head, "little")))
    if pid := os.fork():
        for fd in fds:
            os.close(fd)
        line.sendall(f"{pid}\n".encode())
        line.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        os._exit(0)
    line.close()
    for to, fd in enumerate(fds):
        os.dup2(fd, to)
        os.close(fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


if __name__ == "__main__":
    {"--run": run, "--serve": serve}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
