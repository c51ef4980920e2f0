"""Memory of a long training stream: the main process and its workers, epoch after epoch.

    python eval/bench/memory.py --check

Shards of small pictures with captions are made in a temporary folder and read through `clipkit.data.open_stream`, with
CLIP's own tokenizer, in one run of many epochs; nothing is trained. Linux tells of each process its resident memory
(RSS), its share of what several processes hold (PSS), and what it holds alone (USS). The bar: since the end of the
first epoch no process's RSS is ever more than 5 % above what it was then.
"""

import io
import json
import multiprocessing
import os
import random
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from PIL import Image

if TYPE_CHECKING:
    from clipkit.captions import Tokenizer

GROWTH = 1.05  # of the RSS after the first epoch
EVERY = 20  # steps between two looks
WORDS = 5000  # that captions are made of
MB = 1 << 20


@dataclass(frozen=True)
class Look:
    """What one process holds at a step, in bytes."""

    step: int
    process: str
    rss: int
    pss: int
    uss: int


def look(step: int, processes: dict[str, int]) -> list[Look]:
    """What each of the processes {name: id} holds now."""
    found = []
    for name, pid in processes.items():
        kib: dict[str, int] = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            what, _, rest = line.partition(":")
            kib[what] = int(rest.split()[0])
        uss = kib["Private_Clean"] + kib["Private_Dirty"]
        found.append(Look(step, name, kib["Rss"] << 10, kib["Pss"] << 10, uss << 10))
    return found


def make_shards(folder: Path, samples: int, side: int, shards: int = 10) -> None:
    """`samples` JPEGs of `side` pixels with captions of some ten words, seldom ones seldom."""
    dice, noise = random.Random(0), np.random.default_rng(0)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 10))) for _ in range(WORDS)]
    often = [1 / (rank + 1) for rank in range(WORDS)]
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(samples * shard // shards, samples * (shard + 1) // shards):
                coarse = Image.fromarray(noise.integers(0, 256, (6, 6, 3), np.uint8))
                picture = io.BytesIO()
                coarse.resize((side, side)).save(picture, "JPEG")
                caption = " ".join(dice.choices(words, often, k=dice.randint(4, 16))).encode()
                for suffix, data in (("jpg", picture.getvalue()), ("txt", caption)):
                    facts = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    facts.size = len(data)
                    tar.addfile(facts, io.BytesIO(data))


def clip_tokenizer() -> "Tokenizer":
    """The tokenizer of CLIP's models, as clipkit wraps it."""
    import open_clip

    from clipkit.captions import Tokenizer, clip_encode

    return Tokenizer(clip_encode(open_clip.SimpleTokenizer(context_length=77)), 77, 0, True)


def watch(
    folder: Path, samples: int, own: int, batch: int, workers: int, size: int, tokenizer: "Tokenizer"
) -> list[Look]:
    """Read `samples` samples and look every now and then, and at the end of each epoch of `own`."""
    from clipkit.data import Settings, open_stream
    from clipkit.types import Preprocess

    shape = Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    stream = open_stream(Settings(train=str(folder), batch=batch, workers=workers), tokenizer, shape, 0, 0, 1)
    others = {child.pid or 0 for child in multiprocessing.active_children()}
    steps, looks, began = samples // batch, [], time.monotonic()
    ends = {own * epoch // batch for epoch in range(1, samples // own + 1)}
    for step, _ in enumerate(stream.batches(0, steps), 1):
        if step % EVERY == 0 or step in ends or step == steps:
            children = sorted({child.pid or 0 for child in multiprocessing.active_children()} - others)
            names = {f"worker {i}": pid for i, pid in enumerate(children)}
            looks += look(step, {"main": os.getpid(), **names})
        if step in ends:
            told = ", ".join(f"{one.process} {one.rss / MB:.1f} MB" for one in looks if one.step == step)
            _say(f"step {step} of {steps}, {time.monotonic() - began:.0f} s: {told}")
    return looks


def verdict(looks: list[Look], epoch: int) -> dict[str, Any]:
    """For each process what it held after the first `epoch` steps, the most since, and at the end; `ok`: no process's
    RSS grew beyond the bar."""
    result: dict[str, Any] = {"bench": "memory", "processes": {}}
    for name in dict.fromkeys(one.process for one in looks):
        mine = [one for one in looks if one.process == name and one.step >= epoch]
        facts: dict[str, Any] = {}
        for kind in ("rss", "pss", "uss"):
            held = [getattr(one, kind) / MB for one in mine]
            facts[kind] = {"first": round(held[0], 1), "most": round(max(held), 1), "end": round(held[-1], 1)}
        grown = max(one.rss for one in mine) / mine[0].rss
        result["processes"][name] = {**facts, "grown": round(grown, 4), "ok": grown <= GROWTH}
    return {**result, "bar": GROWTH, "ok": all(one["ok"] for one in result["processes"].values())}


def table(looks: list[Look], ends: list[int]) -> str:
    """MB of each process at the end of each epoch."""
    lines = ["epoch  process        RSS       PSS       USS"]
    for epoch, step in enumerate(ends, 1):
        for one in (one for one in looks if one.step == step):
            mb = "".join(f"{value / MB:10.1f}" for value in (one.rss, one.pss, one.uss))
            lines.append(f"{epoch:>5}  {one.process:<8}{mb}")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(
    samples: Annotated[int, typer.Option(help="Samples to read in all.", min=1)] = 200_000,
    own: Annotated[int, typer.Option(help="Samples of the set, which is an epoch.", min=1)] = 20_000,
    batch: Annotated[int, typer.Option(help="Samples of a step.", min=1)] = 250,
    workers: Annotated[int, typer.Option(help="Worker processes.", min=0)] = 2,
    side: Annotated[int, typer.Option(help="Side of the pictures in the shards.", min=8)] = 64,
    size: Annotated[int, typer.Option(help="Side of the pictures that are made of them.", min=8)] = 32,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a process grows more than 5 %.")] = False,
) -> None:
    """Memory of the main process and the workers over many epochs of a training stream."""
    if own % batch or samples < 2 * own:
        raise typer.BadParameter(f"--own: a multiple of --batch, and half of --samples at most, is needed, got {own}")
    with tempfile.TemporaryDirectory() as folder:
        _say(f"making {own:,} samples")
        make_shards(Path(folder), own, side)
        looks = watch(Path(folder), samples, own, batch, workers, size, clip_tokenizer())
    ends = [own * epoch // batch for epoch in range(1, samples // own + 1)]
    print(table(looks, ends))
    result = verdict(looks, own // batch)
    for name, one in result["processes"].items():
        rss = one["rss"]
        print(
            f"{name}: {rss['first']} MB after an epoch, at most {rss['most']} since: {100 * (one['grown'] - 1):+.1f} %"
        )
    print(json.dumps({**result, "samples": samples, "own": own, "batch": batch, "workers": workers}))
    raise typer.Exit(int(check and not result["ok"]))


if __name__ == "__main__":
    typer.run(main)
