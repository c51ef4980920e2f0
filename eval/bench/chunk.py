"""The gradient cache: its time beside a step that fits, and its memory at growing batches.

    python eval/bench/chunk.py --check

Time: a step (gradients, their norm, AdamW) of a batch of 128 in chunks of 32 against the plain step of the same model,
weights and batch, and against the way of open_clip's `--accum-freq` (every chunk is embedded twice, and the whole loss
is taken again for each of them). Of 4 chunks three are embedded twice; of many all but one are, which tends to 4/3 of
the products. They take turns; the medians of the CPU time are given as ratios to the plain step's.
Of two models: the small one is that of eval/bench/step.py and run.py (96 pixels in patches of 16, both towers of width
192 and 6 layers), the wide one sees 112 pixels (vision: width 512, 4 layers; text: width 256, 4 layers).
Memory: one step in chunks of 256 at each batch, in a fresh process; the most resident memory during the step, beyond
what was there before it with model and batch made and a step of two pairs done; embeddings and their gradients (16 B D
bytes) are in it. The model is smaller, so that 16,384
pairs take minutes (48 pixels in patches of 8; vision: width 192, 6 layers; text: width 128; embeddings of 64). The loss
is the softmax contrast. The bars: at most 1.2x the time, and at any batch memory within 10 % of the first one's.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

TIME, MEMORY = 1.2, 1.1
CONTEXT = 24


def arch(embed: int, image: dict[str, int], text: int, layers: int = 4) -> dict[str, Any]:
    """An architecture for open_clip, with a text tower of that width and so many layers."""
    words = {"context_length": CONTEXT, "vocab_size": 49408, "width": text, "heads": text // 64, "layers": layers}
    return {"embed_dim": embed, "vision_cfg": {**image, "head_width": 64}, "text_cfg": words}


SMALL = arch(192, {"image_size": 96, "patch_size": 16, "width": 192, "layers": 6}, 192, 6)
WIDE = arch(256, {"image_size": 112, "patch_size": 16, "width": 512, "layers": 4}, 256)
TIMED = {"small": SMALL, "wide": WIDE}
HELD = arch(64, {"image_size": 48, "patch_size": 8, "width": 192, "layers": 6}, 128)
MB = 1 << 20


@dataclass(frozen=True)
class Held:
    """The most MB that a step took at a batch, and its seconds of CPU."""

    batch: int
    mb: float
    seconds: float


def model(arch: dict[str, Any]) -> Any:
    """The model of that architecture, with the same first weights each time."""
    import torch

    from clipkit import models

    torch.manual_seed(0)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(arch, file)
        file.flush()
        return models.create(models.Settings(arch=file.name), 1 / 0.07, None)


def batch_of(pairs: int, arch: dict[str, Any]) -> Any:
    """Noise with captions that fill half of the context."""
    import torch

    from clipkit.types import Batch

    side = arch["vision_cfg"]["image_size"]
    dice = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (pairs, 3, side, side), generator=dice, dtype=torch.uint8)
    text = torch.randint(1, 49406, (pairs, CONTEXT), generator=dice)
    text[:, 0], text[:, CONTEXT // 2], text[:, CONTEXT // 2 + 1 :] = 49406, 49407, 0
    return Batch(pixels, text, torch.arange(pairs), [])


def accumulated(net: Any, objective: Any, batch: Any, chunk: int) -> None:
    """The gradients of a batch as open_clip accumulates them."""
    import torch

    from clipkit.types import Embeddings

    parts = [batch.rows(i, i + chunk) for i in range(0, len(batch), chunk)]
    with torch.no_grad():
        cached = [net(part.images, part.text).pair() for part in parts]
    for i, part in enumerate(parts):
        out = net(part.images, part.text)
        pairs = [*cached[:i], out.pair(), *cached[i + 1 :]]
        image, text = (torch.cat(side) for side in zip(*pairs, strict=True))
        objective(Embeddings(image, text, out.scale, out.bias), batch).backward()


def timed(name: str, pairs: int, chunk: int, turns: int) -> dict[str, list[float]]:
    """Seconds of CPU of each turn of the three ways; the first turn, which warms up, is left out."""
    from clipkit import objectives, optim, parallel, step

    net, objective = model(TIMED[name]), objectives.build(objectives.parse("softmax"))
    batch = batch_of(pairs, TIMED[name])
    optimizer = optim.build(optim.Settings(), net.net)
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: step.gradients(net, objective, batch),
        "chunks": lambda: step.gradients(net, objective, batch, chunk),
        "open_clip": lambda: accumulated(net, objective, batch, chunk),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(turns + 1):
        for way, work in ways.items():
            began = time.process_time()
            optimizer.zero_grad()
            work()
            optim.update(optimizer, parallel.clip(net.parameters(), None))
            if turn:
                seconds[way].append(time.process_time() - began)
    return seconds


def held(pairs: int, chunk: int) -> Held:
    """The most that one chunked step takes in this process."""
    from clipkit import objectives, step

    net, batch, objective = model(HELD), batch_of(pairs, HELD), objectives.build(objectives.parse("softmax"))
    step.gradients(net, objective, batch.rows(0, 2), 1)
    before, began = _resident("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")  # the most held is counted from here on
    step.gradients(net, objective, batch, chunk)
    return Held(pairs, (_resident("VmHWM") - before) / MB, time.process_time() - began)


def _resident(which: str) -> int:
    """Bytes: VmRSS now, VmHWM the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:"))


def verdict(seconds: dict[str, dict[str, list[float]]], memory: list[Held]) -> dict[str, Any]:
    """What the last line of output says."""
    plain = {name: statistics.median(ways["plain"]) for name, ways in seconds.items()}
    ratios = {
        name: {way: round(statistics.median(each) / plain[name], 4) for way, each in ways.items()}
        for name, ways in seconds.items()
    }
    grown = max(one.mb for one in memory) / memory[0].mb
    return {
        "bench": "chunk",
        "plain_s": plain,
        "ratios": ratios,
        "memory": [asdict(one) for one in memory],
        "grown": round(grown, 4),
        "bars": {"time": TIME, "memory": MEMORY},
        "ok": all(ways["chunks"] <= TIME for ways in ratios.values()) and grown <= MEMORY,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = ["model   step         CPU time, of the plain one's"]
    lines += [
        f"{name:<8}{way:<12}{ratio:>6.2f}" for name, ways in result["ratios"].items() for way, ratio in ways.items()
    ]
    lines += ["   batch        MB   CPU s"]
    lines += [f"{one['batch']:>8}{one['mb']:>10.1f}{one['seconds']:>8.1f}" for one in result["memory"]]
    return "\n".join(lines)


def main(
    pairs: Annotated[int, typer.Option(help="Batch of the timed steps.", min=2)] = 128,
    chunk: Annotated[int, typer.Option(help="Chunk of the timed steps.", min=1)] = 32,
    turns: Annotated[int, typer.Option(help="Timed steps of each way.", min=1)] = 7,
    batches: Annotated[str, typer.Option(help="Batches at which memory is measured.")] = "1024,4096,16384",
    held_chunk: Annotated[int, typer.Option(help="Chunk of those steps.", min=1)] = 256,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a bar is missed.")] = False,
) -> None:
    """Time and memory of a step in chunks."""
    jobs: list[Any] = [(timed, (name, pairs, chunk, turns)) for name in TIMED]
    jobs += [(held, (int(n), held_chunk)) for n in batches.split(",")]
    found: list[Any] = []
    for job, arguments in jobs:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(job, *arguments).result())
    result = verdict(dict(zip(TIMED, found, strict=False)), found[len(TIMED) :])
    print(table(result))
    print(json.dumps({**result, "pairs": pairs, "chunk": chunk, "held_chunk": held_chunk, "load": os.getloadavg()}))
    raise typer.Exit(int(check and not result["ok"]))


if __name__ == "__main__":
    typer.run(main)
