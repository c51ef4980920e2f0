"""Processes that make shards. None outlives the pack that started it, and any may be killed at any moment."""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from clipkit.datatools.pack.plan import Job, Plan
from clipkit.errors import UserError

START = "forkserver"  # imports once for all workers (torch: 4 s each), and forks from a process without threads
EVERY_S = 0.5  # between two looks at how far the workers are


def make_all(
    plan: Plan, out: Path, jobs: list[Job], workers: int, show: Callable[[int], None]
) -> Generator[dict[str, Any], None, None]:
    """Make the shards `jobs` and yield the record of each; `show(rows)` tells now and then how far they all are.

    Raises: what a worker raises; UserError when one was killed. Closing it stops the workers.
    """
    if min(workers, len(jobs)) > 1:
        yield from _by_pool(plan, out, jobs, min(workers, len(jobs)), show)
    elif jobs:
        from clipkit.datatools.pack.write import write_shard

        before = 0
        for job in jobs:
            yield write_shard(plan, out, job, lambda done, before=before: show(before + done))
            before += job.stop - job.first


def _by_pool(
    plan: Plan, out: Path, jobs: list[Job], workers: int, show: Callable[[int], None]
) -> Generator[dict[str, Any], None, None]:
    context = multiprocessing.get_context(START)
    if START == "forkserver":
        context.set_forkserver_preload(["clipkit.datatools.pack.write", "pyarrow"])
    # memory without locks: a worker that is killed while it holds one would stop all the others
    rows, stop = context.RawArray(ctypes.c_int64, len(jobs)), context.RawValue(ctypes.c_int64, 0)
    begin = (plan.work, out, rows, stop)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=begin) as pool:
        try:
            reached = 0
            waiting = {pool.submit(_make, slot, job) for slot, job in enumerate(jobs)}
            while waiting:
                finished, waiting = wait(waiting, EVERY_S, FIRST_COMPLETED)
                for one in finished:
                    yield one.result()
                if sum(rows) != reached:
                    show(reached := sum(rows))
        except BrokenProcessPool as error:
            raise UserError(
                f"{out}: a worker process was killed, perhaps for want of memory; start again, with fewer --workers: "
                "finished shards are kept"
            ) from error
        finally:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)


class _Stopped(Exception):
    """The pack has ended for another reason."""


_worker: dict[str, Any] = {}


def _begin(work: Path, out: Path, rows: Any, stop: Any) -> None:
    """Make this process ready to make shards; it ends when its parent does, and leaves Ctrl-C to that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.update(plan=Plan(work), out=out, rows=rows, stop=stop)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(slot: int, job: Job) -> dict[str, Any]:
    from clipkit.datatools.pack.write import write_shard

    rows, stop = _worker["rows"], _worker["stop"]

    def tick(done: int) -> None:
        rows[slot] = done
        if stop.value:
            raise _Stopped

    return write_shard(_worker["plan"], _worker["out"], job, tick)
