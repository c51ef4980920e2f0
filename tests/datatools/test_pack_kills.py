"""A pack that is killed, at any moment and however often, ends with the bytes of one that was not."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.datatools.packing import everything, folder
from tests.orders import Orders, taking

# forks a process that packs for each line {"src": ..., "out": ..., ...}; that forks workers too, unless the test is of
# the fork server that packs use otherwise
LAUNCHER = """
import json, os, sys
os.environ["WDS_SECURE"] = "1"
from pathlib import Path
import pyarrow, webdataset.writer
from clipkit.datatools import pack
from clipkit.datatools.pack import pool as pack_pool
from clipkit.datatools.pack import write as pack_write

pyarrow.array([1])  # which imports pandas where there is one

def die_at(count):
    replace = Path.replace
    def counted(self, target):
        nonlocal count
        count -= 1
        if count == 0:
            os.killpg(0, 9)
        return replace(self, target)
    Path.replace = counted

for line in sys.stdin:
    order = json.loads(line)
    ready, begun = os.pipe()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.write(begun, b"x")
        pack_pool.START = order.get("start", "fork")
        if order.get("die"):
            die_at(order["die"])
        try:
            pack.pack(order["src"], Path(order["out"]), workers=order["workers"], per_shard=order["per_shard"])
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    os.read(ready, 1)
    print(pid, flush=True)
    if os.waitpid(pid, 0)[1] == 0:
        print("done", flush=True)
    else:
        print("failed", flush=True)
"""


class Launcher:
    """Packs in processes that can be killed."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def start(self, src: Path, out: Path, **more: Any) -> int:
        """The id of a process, first of its group, that has begun to pack."""
        order = {"src": str(src), "out": str(out), "workers": 2, "per_shard": 15, **more}
        self._orders.give(order)
        return int(self._orders.answer())

    def end(self) -> bool:
        """Whether the process has ended well; waits for it."""
        return self._orders.answer() == "done"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with taking(LAUNCHER, tmp_path_factory.mktemp("launcher") / "log") as orders:
        yield Launcher(orders)


def of_group(group: int) -> list[int]:
    """The processes of a group or session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def gone(group: int) -> bool:
    """Whether all processes of a session end by themselves, soon."""
    for _ in range(200):
        if not of_group(group):
            return True
        time.sleep(0.05)
    return False


def test_a_pack_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, launcher: Launcher) -> None:
    src, dice = folder(tmp_path / "src", 200), random.Random(4)
    launcher.start(src, tmp_path / "straight")
    began = time.monotonic()
    assert launcher.end()
    wanted, takes = everything(tmp_path / "straight"), time.monotonic() - began
    for _ in range(5):
        pid = launcher.start(src, tmp_path / "out")
        time.sleep(dice.uniform(0, takes))
        with contextlib.suppress(ProcessLookupError):  # it was done already
            os.killpg(pid, signal.SIGKILL)
        launcher.end()
    for die in (1, 2, 3, 9, 15):  # before a rename: of the plan, of a shard, of a record
        launcher.start(src, tmp_path / "exact", die=die, workers=1)
        assert not launcher.end()
    for out in ("out", "exact"):
        launcher.start(src, tmp_path / out)
        assert launcher.end()
        assert everything(tmp_path / out) == wanted


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_whose_pack_was_killed_end_by_themselves(tmp_path: Path, launcher: Launcher) -> None:
    src, out = folder(tmp_path / "src", 200), tmp_path / "out"
    pid = launcher.start(src, out, start="forkserver", per_shard=2)
    for _ in range(1200):
        if any(out.glob("*.tar")):
            break
        time.sleep(0.05)
    assert len(of_group(pid)) > 2 and not (out / "pack.json").exists()
    os.kill(pid, signal.SIGKILL)  # it alone: its workers are orphans now
    assert not launcher.end() and gone(pid)
    launcher.start(src, out, per_shard=2)
    assert launcher.end()
    launcher.start(src, tmp_path / "straight", per_shard=2)
    assert launcher.end()
    assert everything(out) == everything(tmp_path / "straight")
