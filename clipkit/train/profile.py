"""A trace of some steps by torch's profiler, to be opened in https://ui.perfetto.dev or chrome://tracing."""

from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field

from clipkit.config import settings
from clipkit.log import say

TOP = 15


@settings
class Settings:
    start: Annotated[int, Field(ge=0)] = 20
    """Steps of the run before the first that is traced; the first ones compile and warm up."""
    steps: Annotated[int, Field(gt=0)] = 5
    """Steps to trace; each takes some megabytes."""


class Tracer:
    """While inside, traces the steps that `cfg` names (None: none) to FOLDER/profile/rank0-stepN.json.gz; a step is
    from one call of `step` to the next.
    """

    def __init__(self, cfg: Settings | None, folder: Path, done: int) -> None:
        self.cfg, self.folder, self.done = cfg, folder / "profile", done
        self.running: Any = None

    def __enter__(self) -> Self:
        if self.cfg and self.done > self.cfg.start:
            say(f"profile: step {self.cfg.start} is done already; for a trace give profile.start={self.done + 10}")
        self.step(self.done)
        return self

    def __exit__(self, *_: Any) -> None:
        self._finish()

    def step(self, done: int) -> None:
        """`done` steps of the run are done: begin or end, where it is time."""
        if self.cfg is None:
            return
        if self.running is not None and done == self.cfg.start + self.cfg.steps:
            self._finish()
        elif self.running is None and done == self.cfg.start:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            self.running = torch.profiler.profile(activities=kinds)
            self.running.start()

    def _finish(self) -> None:
        """Write what was traced, if anything is: also where the run ends before its last traced step."""
        if self.running is None or self.cfg is None:
            return
        self.running.stop()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"rank0-step{self.cfg.start}.json.gz"
        self.running.export_chrome_trace(str(path))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self.running.key_averages().table(sort_by=order, row_limit=TOP, max_name_column_width=40)
        say(f"{path}: a trace of {self.cfg.steps} steps, for https://ui.perfetto.dev\n{table}")
        self.running = None
