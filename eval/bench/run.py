"""Whole training runs, from tars to weights: clipkit beside open_clip_train, in one run on one machine.

    python eval/bench/run.py --check

Both trainers get the same architecture (96 pixels, patch 16, vision and text width 192, 6 layers each), shards, batch
of 128, steps, crop, float32, AdamW, warmup and cosine (eval/bench/trainers.py), and no validation; each is timed from
the start of its process to its end with the weights written. For each seed the two train in turn at a context of 77,
which is open_clip's; then, for the first seed alone and fewer steps, at 32. Bars: 1.9 times the pairs per second at
77, 1.3 times at 32; less peak memory over all processes; held-out mean R@5 not below open_clip's by more than the
deviation over the seeds, of both trainers together: that of three trainings of one was 0.001 in one run and 0.018 in
another (LOG.md). One scorer reads both trainers' weights, and a plain twin must agree with it (eval/bench/scorers.py).

Memory is the greatest sum, over the processes of a trainer, of their proportional set sizes (PSS: a page that k
processes share counts 1/k for each), looked at four times a second.
"""

import glob
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import peers
import typer
from scorers import clipkit_scores, plain_scores
from trainers import Case, timed

CLIPART = Path(__file__).resolve().parents[3] / "shared/data/clipart"
NAMES = ("open_clip", "clipkit")
BARS = {77: 1.9, 32: 1.3}  # times open_clip's pairs per second, by context


def architecture(context: int) -> dict[str, Any]:
    """open_clip's configuration of the model that both train."""
    vision = {"image_size": 96, "layers": 6, "width": 192, "head_width": 64, "patch_size": 16}
    text = {"context_length": context, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 6}
    return {"embed_dim": 192, "vision_cfg": vision, "text_cfg": text}


@dataclass(frozen=True)
class Row:
    """One training run: what it cost, and how well its model finds the held-out pairs."""

    trainer: str
    context: int
    seed: int
    pairs: int
    seconds: float
    pairs_per_s: float
    peak_mb: float
    recall5: float
    plain_recall5: float


def run(case: Case, trainer: str, context: int, seed: int, steps: int, workers: int, folder: Path) -> Row:
    """Train once, from the start of the process to its end, and score what it left."""
    out = folder / f"{trainer}-{context}-{seed}"
    command, weights = case.command(trainer, steps, seed, workers, out)
    watched: list[float] = []
    seconds = timed(command, weights, watched.append)
    pairs = steps * case.batch
    ours, plain = (score(case.arch, weights, case.test)["mean_recall@5"] for score in (clipkit_scores, plain_scores))
    return Row(trainer, context, seed, pairs, seconds, pairs / seconds, max(watched) / 2**20, ours, plain)


def table(rows: list[Row]) -> str:
    """The runs as text, in their order."""
    lines = ["trainer    context  seed     pairs   seconds   pairs/s   peak MB     R@5   R@5, plain twin"]
    for r in rows:
        line = f"{r.trainer:<10}{r.context:>8}{r.seed:>6}{r.pairs:>10}{r.seconds:>10.1f}{r.pairs_per_s:>10.1f}"
        lines.append(f"{line}{r.peak_mb:>10.0f}{r.recall5:>8.4f}{r.plain_recall5:>18.4f}")
    return "\n".join(lines)


def verdict(rows: list[Row]) -> dict[str, Any]:
    """What the last line of output says; `ok`: every bar of this file's first lines is met."""

    def of(name: str, context: int) -> list[Row]:
        return [row for row in rows if (row.trainer, row.context) == (name, context)]

    ratios = {}
    for context in sorted({row.context for row in rows}, reverse=True):
        pairs = zip(of("clipkit", context), of("open_clip", context), strict=True)
        ratios[context] = statistics.median(a.pairs_per_s / b.pairs_per_s for a, b in pairs)
    long = max(ratios)
    mine, peer = (of(name, long) for name in reversed(NAMES))
    mean = {name: statistics.mean(row.recall5 for row in of(name, long)) for name in NAMES}
    spread = [statistics.variance(row.recall5 for row in rows) for rows in (mine, peer) if len(rows) > 1]
    noise = statistics.mean(spread) ** 0.5 if spread else 0.0
    peak = {name: max(row.peak_mb for row in of(name, long)) for name in NAMES}
    agree = all(abs(row.recall5 - row.plain_recall5) <= 0.01 for row in rows)
    result = {"bench": "run", "ratio": ratios, "bars": {c: BARS[c] for c in ratios}, "mean_recall5": mean}
    result |= {"seed_noise": noise, "peak_mb": peak, "scorers_agree": agree, "seeds": len(mine)}
    fast = all(ratio >= BARS[context] for context, ratio in ratios.items())
    good = mean["clipkit"] >= mean["open_clip"] - noise
    result["ok"] = fast and good and agree and peak["clipkit"] < peak["open_clip"]
    return result | {"runs": [asdict(row) for row in rows], "load": os.getloadavg(), "cores": os.cpu_count()}


def main(
    data: Annotated[Path, typer.Option(help="Folder with train-*.tar and test-*.tar.")] = CLIPART,
    seeds: Annotated[int, typer.Option(help="Trainings of each at a context of 77.", min=1)] = 3,
    epochs: Annotated[float, typer.Option(help="Passes over the 5,544 pairs at a context of 77.", min=0.05)] = 3,
    short: Annotated[float, typer.Option(help="Passes at a context of 32; 0 leaves it out.", min=0)] = 1.5,
    batch: Annotated[int, typer.Option(help="Pairs of a step.", min=1)] = 128,
    workers: Annotated[int, typer.Option(help="Loader processes of each trainer.", min=1)] = 1,
    peer: Annotated[str, typer.Option(help="Python with a working open_clip_train; made when not given.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless every bar is met.")] = False,
) -> None:
    """Whole training runs, from tars to weights, clipkit beside open_clip_train."""
    train, test = (str(data.resolve() / f"{split}-*.tar") for split in ("train", "test"))
    if not glob.glob(train) or not glob.glob(test):
        raise typer.BadParameter(f"--data: {data} needs train-*.tar and test-*.tar")
    samples = _samples(train)
    plans = [(77, seed, epochs) for seed in range(seeds)] + ([(32, 0, short)] if short else [])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for context, seed, passes in plans:
            arch = Path(folder) / f"clipart{context}.json"
            arch.write_text(json.dumps(architecture(context)))
            case = Case(arch, train, test, batch, peer or peers.trainer())
            for name in NAMES if seed % 2 == 0 else reversed(NAMES):
                steps = max(1, round(passes * samples / batch))
                rows.append(run(case, name, context, seed, steps, workers, Path(folder)))
                print(table(rows).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    result = verdict(rows)
    told = ", ".join(f"{ratio:.2f} at context {c} (bar {BARS[c]})" for c, ratio in result["ratio"].items())
    print(f"clipkit's pairs/s over open_clip's, whole runs: {told}")
    print(json.dumps(result))
    raise typer.Exit(int(check and not result["ok"]))


def _samples(pattern: str) -> int:
    import tarfile

    return sum(name.endswith(".txt") for path in glob.glob(pattern) for name in tarfile.open(path).getnames())


if __name__ == "__main__":
    typer.run(main)
