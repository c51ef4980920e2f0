"""A Python process that takes orders: it does the imports, which take seconds, once, and forks what may be killed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import making


class Orders:
    """A process whose program reads lines of JSON and answers with lines."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def give(self, order: Any) -> None:
        """Send an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order, default=str) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """The next line of the program; empty where it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def taking(program: str, log: Path) -> Iterator[Orders]:
    """A process of this program, which tells its errors in `log`; it ends with the block."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, text=True, cwd=making.ROOT, env=making.environment(),
        )  # fmt: skip
        try:
            yield Orders(process)
        finally:
            process.kill()
            process.communicate()
