"""What feeding a GPU costs: CPU time from shards to tensors in the main process, clipkit beside open_clip's own pipeline.

    python eval/bench/loader.py --check

1. For pictures of three sizes both sides run one worker (`--workers`), batches of 256, random crops of 0.9 to 1 of the
   area at 224 pixels, and CLIP's tokenizer: clipkit's `open_stream` up to `Batch`, and open_clip_train's `get_data`, in
   an environment of its own. They take turns. What is counted is the CPU time, user and system, of the main process
   and its workers for some batches; before and after, whatever was asked ahead is finished and at rest. The ratio is
   the median over the turns.
2. Evaluation pixels: `images.eval_view` beside open_clip's transform, mean absolute difference of 255.
3. Hand-over: a batch of bytes from a worker to the main process that does nothing else, and float32 as open_clip's.
4. Tokenizer: us a caption, with nothing remembered (cold) and at the second reading of the same captions (warm).

The pictures are crops of photographs that come with scikit-image, scikit-learn and matplotlib, which are fetched into
`--data`; `--photos` takes others. Those of 1024 x 768 are four crops side by side, because enlarged ones would have too
few bits a pixel. What is done for the peer: its shuffle buffer is 300 samples instead of 5,000, since a buffer that
still fills reads two samples for each one it gives, and shards are drawn with replacement, so that no epoch ends.
This file runs in the peer's environment too: what only clipkit needs is imported where it is used.
"""

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainers import REPO, peer_python

NAMES = ("open_clip", "clipkit")
SIDE, BATCH, CROP, SHARDS = 224, 256, (0.9, 1.0), 4
PIXEL_BAR, HAND_OVER_BAR = 0.05, 0.2  # of 255; ms
CAPTIONS = REPO.parent / "shared" / "data" / "clipart"


# The two sides


def tokenizer_of_clipkit() -> Any:
    """The tokenizer that training makes for CLIP's vocabulary, by way of a small model that has it."""
    from clipkit import models

    return models.create(models.Settings(arch="small")).tokenizer


def clipkit_batches(folder: Path, workers: int, batch: int) -> Iterator[int]:
    """The sizes of the batches that training would get from these shards."""
    from clipkit.data import Settings, open_stream
    from clipkit.types import Preprocess

    cfg = Settings(train=str(folder), batch=batch, workers=workers, crop=CROP)
    shape = Preprocess(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    stream = open_stream(cfg, tokenizer_of_clipkit(), shape, seed=0, rank=0, world=1)
    for made in stream.batches(0, 1 << 20):
        assert made.images.shape[1:] == (3, SIDE, SIDE), made.images.shape
        yield len(made)


def open_clip_batches(folder: Path, workers: int, batch: int) -> Iterator[int]:
    """The sizes of the batches that open_clip_train would get from these shards."""
    import open_clip
    from open_clip_train import data

    data._SAMPLE_SHUFFLE_SIZE = data._SAMPLE_SHUFFLE_INITIAL = 300
    args = SimpleNamespace(
        train_data="::".join(map(str, sorted(folder.glob("*.tar")))),
        train_num_samples=batch * workers << 20,
        train_data_upsampling_factors=None,
        dataset_type="webdataset",
        dataset_resampled=True,
        val_data=None,
        imagenet_val=None,
        imagenet_v2=None,
        batch_size=batch,
        workers=workers,
        world_size=1,
        seed=0,
    )
    transform = open_clip.image_transform(SIDE, True, aug_cfg={"scale": CROP})
    loader = data.get_data(args, (transform, None), tokenizer=open_clip.get_tokenizer("ViT-B-32"))["train"].dataloader
    for images, texts in loader:
        assert images.shape[1:] == (3, SIDE, SIDE) and texts.shape[1] == 77, (images.shape, texts.shape)
        yield len(images)


def serve(batches: Iterator[int], warm: int) -> None:
    """After `warm` batches, for each number that comes in as a line: take so many, and answer with what they cost."""
    taken(batches, warm)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(taken(batches, int(line)))), flush=True)


@dataclass(frozen=True)
class Cost:
    """What some batches took: samples, CPU milliseconds each, and the most megabytes that a worker held."""

    samples: int
    ms: float
    worker_mb: float


def taken(batches: Iterator[int], count: int) -> Cost:
    """Take the next `count` batches; the cost of as many, because the workers' lead is as large after as before."""
    main, workers = time.process_time(), rested()
    samples = sum(next(batches) for _ in range(count))
    main = time.process_time() - main
    workers = rested() - workers
    held = [_rss_mb(process.pid) for process in active_children() if process.pid]
    return Cost(samples, (main + workers) / max(samples, 1) * 1e3, max(held, default=0.0))


def rested(quiet: int = 4, tick_s: float = 0.05) -> float:
    """CPU seconds of the worker processes, once they have slept over `quiet` looks in a row."""
    before, since = -1.0, 0
    while True:
        pids = [process.pid for process in active_children() if process.pid]
        now = sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # Linux's number of another process's CPU clock
        since = since + 1 if now == before and not any(map(_runs, pids)) else 0
        if since >= quiet or not pids:
            return now
        before = now
        time.sleep(tick_s)


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "R"


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


class Side:
    """One side in its own process, at rest unless it is asked."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )

    def answer(self) -> str:
        """Its next line.

        Raises: SystemExit with the last lines that it said when there is none.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text().splitlines()[-25:])
            raise SystemExit(f"{tail}\n{self.command[0]}: the side above ended (exit {self.process.wait()})")
        return line

    def cost(self, batches: int) -> Cost:
        """What it costs to take so many batches."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batches}\n")
        self.process.stdin.flush()
        return Cost(**json.loads(self.answer()))

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.communicate()  # the end of its input is its sign to stop


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)
