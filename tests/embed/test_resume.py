"""An embedding that is killed, at any moment and however often, or runs on several processes, has the same bytes."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipkit.vectors.parts import LOCK
from tests import making
from tests.embed import laid
from tests.orders import Orders, taking

# forks a process that embeds for each line [model, source, out, die]
LAUNCHER = """
import json, os, sys
from pathlib import Path
import torch, open_clip, pyarrow.parquet, filelock
from clipkit import embed, models
from clipkit.sets import open_table

torch.set_num_threads(1)
replace = Path.replace
for line in sys.stdin:
    model, source, out, die = json.loads(line)
    pid = os.fork()
    if not pid:
        def counted(self, target):
            global die
            die -= 1
            if die == 0:
                os.kill(os.getpid(), 9)
            return replace(self, target)
        Path.replace = counted
        try:
            embed.embed(model, source, out, part=5, batch=4)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print("done" if os.waitpid(pid, 0)[1] == 0 else "failed", flush=True)
"""


class Launcher:
    """Embeds in processes that can be killed."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def start(self, model: str, source: Path, out: Path, die: int = 0) -> int:
        """The id of a process that embeds; it kills itself before its rename number `die`."""
        self._orders.give([model, source, out, die])
        return int(self._orders.answer())

    def end(self) -> bool:
        """Whether the process has ended well; waits for it."""
        return self._orders.answer() == "done"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with taking(LAUNCHER, tmp_path_factory.mktemp("launcher") / "log") as orders:
        yield Launcher(orders)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return making.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: shards would keep an index that the first call writes."""
    folder = laid.pictures(tmp_path_factory.mktemp("p"), [f"{n % 3}/{n}.jpg" for n in range(120)])
    laid.broken(folder, "0/9.jpg")
    return folder


@pytest.fixture(scope="module")
def wanted(launcher: Launcher, model: str, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an unbroken run writes."""
    out = tmp_path_factory.mktemp("whole") / "v"
    launcher.start(model, source, out)
    assert launcher.end()
    return laid.everything(out)


def test_an_embedding_killed_again_and_again_ends_with_the_same_bytes(
    launcher: Launcher, model: str, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    began = time.monotonic()
    launcher.start(model, source, tmp_path / "straight")
    assert launcher.end()
    dice, takes, killed = random.Random(7), time.monotonic() - began, 0
    for _ in range(5):
        pid = launcher.start(model, source, tmp_path / "v")
        time.sleep(dice.uniform(0, takes))
        with contextlib.suppress(ProcessLookupError):  # it was done already
            os.kill(pid, signal.SIGKILL)
        killed += not launcher.end()
    assert killed >= 1
    if not (tmp_path / "v/vectors.json").exists():
        launcher.start(model, source, tmp_path / "v")
        assert launcher.end()
    assert laid.everything(tmp_path / "v") == wanted == laid.everything(tmp_path / "straight")


def test_a_death_before_any_rename_leaves_what_can_be_gone_on_with(
    launcher: Launcher, model: str, source: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    for die in (1, 2, 3, 4, 5, 6):  # before that of the plan, of a part's files, of its record, of the next part's
        launcher.start(model, source, tmp_path / "v", die)
        assert not launcher.end()
    assert LOCK in laid.everything(tmp_path / "v")
    launcher.start(model, source, tmp_path / "v")
    assert launcher.end()
    assert laid.everything(tmp_path / "v") == wanted


@pytest.mark.parametrize("before", [2, 1], ids=["manifest", "vectors.json"])
def test_a_death_at_the_end_leaves_an_end_to_be_made(
    launcher: Launcher, model: str, source: Path, wanted: dict[str, bytes], tmp_path: Path, before: int
) -> None:
    renames = len(wanted) + 24  # and the records of the parts, which go into the manifest
    launcher.start(model, source, tmp_path / "v", renames + 1 - before)
    assert not launcher.end() and "vectors.json" not in laid.everything(tmp_path / "v")
    launcher.start(model, source, tmp_path / "v")
    assert launcher.end()
    assert laid.everything(tmp_path / "v") == wanted


def test_two_ranks_write_the_same_bytes(model: str, source: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    options = ("--out", str(tmp_path / "v"), "--part", "5", "--batch", "4")
    done = making.launch("clipkit.embed", model, str(source), *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/v: 119 pictures and 119 captions", done.stdout
    assert laid.everything(tmp_path / "v") == wanted
    again = making.launch("clipkit.embed", model, str(source), *options)
    assert again.returncode != 0 and "already exists and is left as it is" in again.stderr
    assert again.stderr.count("clipkit: ") == 1


def test_an_error_of_one_rank_ends_all(model: str, tmp_path: Path) -> None:
    laid.shards(tmp_path / "s", (60,), bad=tuple(range(20, 60)))
    done = making.launch("clipkit.embed", model, str(tmp_path / "s"), "--out", str(tmp_path / "v"), "--part", "2")
    assert done.returncode != 0 and "samples are unreadable (not a picture:" in done.stderr, done.stderr
    assert not (tmp_path / "v/vectors.json").exists()
