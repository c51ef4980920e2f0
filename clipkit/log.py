"""What a run tells: progress and messages on stderr for people, rows of metrics.jsonl for programs."""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def say(text: str) -> None:
    """A message on stderr, from the first process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        _tell(text)


def _tell(text: str) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more; the work goes on
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """For people: `42 s`, `3:07`, `2:05:09`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Progress:
    """A progress bar with ETA where stderr is a terminal, else a plain line now and then; silent on other ranks, and
    about what ends within `hush_s` seconds."""

    def __init__(self, title: str, total: int, start: int = 0, every_s: float = 10.0, hush_s: float = 0.0) -> None:
        self.title, self.total, self.start, self.every_s, self.hush_s = title, total, start, every_s, hush_s
        self.began = self.told = time.monotonic()
        self.quiet = int(os.environ.get("RANK", "0")) != 0
        self.bar: Any = None
        if not self.quiet and sys.stderr.isatty():
            self.bar = _bar()
            self.task = self.bar.add_task(title, total=total, completed=start, text="")

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def resize(self, total: int) -> None:
        """Set a total that was not known at the start."""
        self.total = total
        if self.bar is not None:
            self.bar.update(self.task, total=total)

    def update(self, done: int, text: str = "") -> None:
        """`done` of the total is reached; `text` says how it stands."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=text)
            return
        now = time.monotonic()
        if now - self.began < self.hush_s or (done < self.total and now - self.told < self.every_s):
            return
        self.told = now
        left = (now - self.began) / max(done - self.start, 1) * (self.total - done)
        soon = f", {duration(left)} left" if done > self.start else ""  # nothing can be told from nothing
        eta = soon if done < self.total else f" in {duration(now - self.began)}"
        _tell(f"{self.title} {done}/{self.total}{eta}{'  ' + text if text else ''}")


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    # twice a second: the thread that draws takes time from the step
    return Progress(*columns, console=Console(stderr=True), expand=True, refresh_per_second=2)


class Rows:
    """An append-only JSON-lines file whose rows carry a `step`; opening it drops the rows after `last_step`.

    A run that was killed has written rows after its last checkpoint; it will write them again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= last_step]
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            temporary.replace(path)
        self.file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it is on its way to disk when this returns."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()


def _step(line: str) -> float:
    """The step of a row; a line that a kill cut short counts as never written."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON-lines file, without a last line that is still being written; none where there is no file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line.strip()]
