"""The end of a run that goes nowhere: a watchdog in every process, and what a process that ended early leaves behind.

A collective whose peer is stopped, or a read from a dead file system, waits for ever, and nothing in the main thread
can notice. A peer that died is another matter where gloo connects them: the collective fails at once.
"""

import faulthandler
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from clipkit import distributed
from clipkit.errors import ClipkitError, RankLost

LONG = 6
"""The first step, an evaluation and saving may take so many times as long as a step: compiling, large sets, slow disks.
"""
TELL_S = 10.0
"""Seconds in which a process that ends itself may say why."""


class Watch:
    """Ends the process with exit code 6 and the stacks of all its threads, when it has not been told of a step for
    `timeout_s` seconds (`LONG` times that where it was told to be patient)."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self.folder, self.timeout_s = folder, timeout_s
        self.rank = distributed.rank()  # which nobody knows any more once the process group is left
        self.step, self.beats, self.phase, self.limit = 0, 0, "starting", math.inf
        self.over = threading.Event()

    def beat(self, step: int, phase: str = "training", patient: bool = False) -> None:
        """`step` steps are done, and the next thing has begun."""
        self.step, self.phase, self.limit = step, phase, self.timeout_s * (LONG if patient else 1)
        self.beats += 1

    def run(self) -> None:
        """What the watching thread does. It counts its own ticks, so that a process that was stopped and goes on, or a
        laptop that slept, is not taken for one that hangs."""
        tick, waited, seen = min(1.0, self.timeout_s / 10), 0.0, self.beats
        while not self.over.wait(tick):
            waited = waited + tick if seen == self.beats else 0.0
            seen = self.beats
            if waited >= self.limit:
                self.expire()

    def expire(self) -> None:
        """End this process, now."""
        text = (
            f"{self.phase} for more than {self.limit:g} s after step {self.step}: this process hangs, or waits for "
            "one that does. Its stacks are above; the same command goes on from the last checkpoint (timeout_s sets "
            "the limit)"
        )

        def tell() -> None:
            with suppress(OSError):
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                print(f"clipkit (rank {self.rank}): {text}", file=sys.stderr, flush=True)
            self.record(RankLost.exit_code, text)

        teller = threading.Thread(target=tell, daemon=True)  # whom a dead disk or a closed pipe may keep, but not us
        teller.start()
        teller.join(TELL_S)
        os._exit(RankLost.exit_code)

    def record(self, code: int, error: str) -> None:
        """Leave exit-rank*.json in the run, since launchers turn every exit code into 1."""
        if not (self.folder / "train.yaml").exists():  # the folder may be anything, and nothing was trained
            return
        facts = {"code": code, "error": error, "step": self.step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with suppress(OSError):  # what ended the process is what counts
            exit_file(self.folder, self.rank).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def exit_file(folder: Path, rank: int) -> Path:
    """Where a process of the run tells why it ended before the run did."""
    return folder / f"exit-rank{rank}.json"


@contextmanager
def watched(folder: Path, timeout_s: float) -> Iterator[Watch]:
    """While inside, the process is watched; what ends it early is recorded, and the loss of another process told.

    Raises: RankLost where a collective failed.
    """
    watch = Watch(folder, timeout_s)
    exit_file(folder, watch.rank).unlink(missing_ok=True)
    threading.Thread(target=watch.run, daemon=True, name="watch").start()
    try:
        try:
            yield watch
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            raise RankLost(
                f"another process is gone, after step {watch.step} ({watch.phase}); its own message says why. The same "
                f"command goes on from the last checkpoint ({str(error).splitlines()[0][:200]})"
            ) from error
    except Exception as error:
        code = error.exit_code if isinstance(error, ClipkitError) else 1
        watch.record(code, str(error) or type(error).__name__)
        raise
    finally:
        watch.over.set()


def _is_lost(error: RuntimeError) -> bool:
    """Did a collective fail, rather than our own code? gloo says so by its text alone."""
    known = isinstance(error, DistBackendError | DistNetworkError | DistStoreError)
    return known or "gloo/transport" in str(error)
