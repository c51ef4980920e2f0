"""Time and memory of the contrastive losses, forward and backward: clipkit beside open_clip.

    python eval/bench/loss.py --check

Embeddings of D = 512 in float32, pairs somewhat alike. For each loss and batch either side has a fresh process
of its own; the two take turns, and what counts is the CPU time of one forward and backward, the least over the turns,
and the most memory that the process ever held above what it held before its first. One thread computes (`--threads`),
because several that wait for each other on a busy machine would count their waiting as work. The bars: at 8,192 pairs
at most 0.55 of open_clip's time for softmax and 0.65 for sigmoid; at 16,384 at most 1/20 of its memory; and 65,536
pairs, which clipkit computes alone, in less than 2,000 MB. Similarities are scaled as when training begins (1 / 0.07
and 10); `--scale 100` is where CLIP's end, at which one exponential no longer serves both directions. The chunked form
of SigLipLoss is not in open_clip 3.3.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

WIDTH = 512
TIME_BARS, TIMED = {"softmax": 0.55, "sigmoid": 0.65}, 8192
MEMORY_BAR, WEIGHED = 1 / 20, 16384
HUGE, HUGE_MB = 65536, 2000.0


@dataclass(frozen=True)
class Cost:
    """What one side took: CPU seconds of one forward and backward, megabytes above what its process held before, and
    the loss that it found."""

    seconds: float
    mb: float
    loss: float


@dataclass(frozen=True)
class Row:
    """A loss and batch, with what clipkit took and, but for the largest, what open_clip did."""

    kind: str
    batch: int
    clipkit: Cost
    open_clip: Cost | None

    @property
    def time(self) -> float | None:
        """clipkit's CPU time as a share of open_clip's."""
        return self.clipkit.seconds / self.open_clip.seconds if self.open_clip else None

    @property
    def memory(self) -> float | None:
        """clipkit's memory as a share of open_clip's."""
        return self.clipkit.mb / self.open_clip.mb if self.open_clip else None

    @property
    def ok(self) -> bool:
        """Is it within the bars, where there are any for this batch, and is the loss the peer's?"""
        if self.open_clip is None or self.time is None or self.memory is None:
            return self.batch < HUGE or self.clipkit.mb < HUGE_MB
        return (
            abs(self.clipkit.loss - self.open_clip.loss) < 1e-5 * self.open_clip.loss
            and (self.batch != TIMED or self.time <= TIME_BARS[self.kind])
            and (self.batch != WEIGHED or self.memory <= MEMORY_BAR)
        )


def passes(side: str, kind: str, batch: int, scale: float = 0.0) -> Callable[[], float]:
    """A function that goes forward and backward once, and gives the loss; `scale` 0 is the one to begin with."""
    import torch
    from torch.nn.functional import normalize

    torch.manual_seed(0)
    image = normalize(torch.randn(batch, WIDTH), dim=-1)
    text = normalize(0.3 * image + normalize(torch.randn(batch, WIDTH), dim=-1), dim=-1)
    scale = scale or (1 / 0.07 if kind == "softmax" else 10.0)
    scalars = [torch.tensor(scale)] if kind == "softmax" else [torch.tensor(scale), torch.tensor(-10.0)]
    inputs = [x.requires_grad_() for x in (image, text, *scalars)]
    if side == "open_clip":
        from open_clip import loss as peer

        loss: Callable[..., Any] = peer.ClipLoss() if kind == "softmax" else peer.SigLipLoss()
    else:
        from clipkit import objectives
        from clipkit.types import Batch, Embeddings

        objective = objectives.build(objectives.parse(kind))
        nothing = torch.empty(0)

        def loss(image: Any, text: Any, scale: Any, bias: Any = None) -> Any:
            return objective(Embeddings(image, text, scale, bias), Batch(nothing, nothing, nothing, []))

    def once() -> float:
        for x in inputs:
            x.grad = None
        value = loss(*inputs)
        value.backward()
        return value.item()

    return once


def serve(side: str, kind: str, batch: int, threads: int, scale: float) -> None:
    """For each line that comes in, go forward and backward once and answer with what it cost."""
    import torch

    torch.set_num_threads(threads)
    once = passes(side, kind, batch, scale)
    passes(side, kind, 64)()  # what is loaded at the first use is not the loss's
    Path("/proc/self/clear_refs").write_text("5")  # the most memory held is counted from here
    before = _mb("VmRSS")
    for _ in sys.stdin:
        began = time.process_time()
        loss = once()
        took = time.process_time() - began
        print(json.dumps(asdict(Cost(took, _mb("VmHWM") - before, loss))), flush=True)


def _mb(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def measure(kind: str, batch: int, turns: int, threads: int, scale: float, sides: tuple[str, ...]) -> Row:
    """Both sides' least time over `turns` turns, and the most memory."""
    costs: dict[str, list[Cost]] = {side: [] for side in sides}
    with ExitStack() as stack:
        processes = {}
        for side in sides:
            command = [sys.executable, __file__, "--serve", f"{side} {kind} {batch} {threads} {scale}"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes[side] = stack.enter_context(process)
            stack.callback(process.kill)
        for _ in range(turns):
            for side, process in processes.items():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                costs[side].append(Cost(**json.loads(process.stdout.readline())))
    least = {
        side: Cost(min(one.seconds for one in found), max(one.mb for one in found), found[-1].loss)
        for side, found in costs.items()
    }
    return Row(kind, batch, least["clipkit"], least.get("open_clip"))


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = ["loss       pairs   clipkit s  open_clip s   ratio   clipkit MB  open_clip MB   ratio"]
    for row in rows:
        mine, theirs = row.clipkit, row.open_clip
        line = f"{row.kind:<8}{row.batch:>8}{mine.seconds:>12.3f}"
        if theirs is None:
            lines.append(f"{line}{'':>21}{mine.mb:>13.0f}")
        else:
            lines.append(
                f"{line}{theirs.seconds:>13.3f}{row.time:>8.2f}{mine.mb:>13.0f}{theirs.mb:>14.0f}{row.memory:>8.3f}"
            )
    return "\n".join(lines)


def verdict(rows: list[Row]) -> dict[str, Any]:
    """What the last line of output says."""
    cases = [{**asdict(row), "time": row.time, "memory": row.memory, "ok": row.ok} for row in rows]
    bars = {"time": TIME_BARS, "memory": MEMORY_BAR, "huge_mb": HUGE_MB}
    return {"bench": "loss", "cases": cases, "bars": bars, "ok": all(row.ok for row in rows)}


def main(
    batches: Annotated[str, typer.Option(help="Pairs, with commas between.")] = "1024,4096,8192,16384,65536",
    kinds: Annotated[str, typer.Option(help="Losses, with commas between.")] = "softmax,sigmoid",
    turns: Annotated[int, typer.Option(help="Turns of each side; from 16,384 pairs on one.", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="Threads that compute.", min=1)] = 1,
    scale: Annotated[float, typer.Option(help="Of the similarities; 0 is the one that training begins with.")] = 0.0,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a bar is missed.")] = False,
    served: Annotated[str, typer.Option("--serve", hidden=True)] = "",
) -> None:
    """CPU time and memory of the contrastive losses beside open_clip's."""
    if served:
        side, kind, batch, own, factor = served.split()
        serve(side, kind, int(batch), int(own), float(factor))
        return
    rows = []
    for kind in kinds.split(","):
        for batch in map(int, batches.split(",")):
            sides = ("clipkit",) if batch >= HUGE else ("open_clip", "clipkit")
            rows.append(measure(kind, batch, 1 if batch >= WEIGHED else turns, threads, scale, sides))
            print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    print(json.dumps({**verdict(rows), "turns": turns, "threads": threads, "scale": scale, "load": os.getloadavg()}))
    raise typer.Exit(int(check and not all(row.ok for row in rows)))


if __name__ == "__main__":
    typer.run(main)
