"""Commands in processes that are killed at the n-th time they touch a file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.orders import Orders, taking

# forks a process that works for each line of orders
LAUNCHER = """
import importlib, json, os, signal, sys

for name in ("add", "compact", "merge", "remove", "build"):
    importlib.import_module(f"clipkit.index.{name}")
import faiss, pyarrow.parquet, torch

TOUCHES = ("open", "os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "shutil.copyfile",
           "os.truncate", "sqlite3.connect", "ctypes.dlsym")

def dying(at):
    count = 0
    def touched(event, arguments):
        nonlocal count
        if event in TOUCHES:
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(touched)
    return lambda: count

for line in sys.stdin:
    order = json.loads(line)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        faiss.omp_set_num_threads(1)
        torch.set_num_threads(1)
        module, _, name = order["call"].rpartition(".")
        work = getattr(importlib.import_module(module), name)
        count = dying(order["die"])
        try:
            work(*order["with"])
        except BaseException as error:
            os.write(2, f"{error!r}\\n".encode())
            os._exit(1)
        os.write(write, str(count()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        touches = told.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps({"ended": ended, "touches": int(touches or 0)}), flush=True)
"""


class Launcher:
    """Calls functions in processes of their own."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def call(self, name: str, *arguments: Any, die: int = 0) -> tuple[int, int]:
        """(exit code, negative for a signal; how often it touched a file), killed at the touch number `die`."""
        self._orders.give({"call": name, "with": arguments, "die": die})
        told = json.loads(self._orders.answer())
        return told["ended"], told["touches"]


@contextmanager
def launcher(log: Path) -> Iterator[Launcher]:
    """A launcher, whose processes tell their errors in `log`."""
    with taking(LAUNCHER, log) as orders:
        yield Launcher(orders)
