"""One side of the loader's bench in a process of its own, which takes batches when it is told to.

    python eval/bench/sides.py NAME FOLDER WORKERS WARM

It says `ready` after WARM batches, then reads numbers of batches as lines and answers each with what they cost.
open_clip's side runs in the peer's environment: what only clipkit has is imported where it is used.
"""

import json
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader

SIDE, BATCH, CROP = 224, 256, (0.9, 1.0)


def clipkit_tokenizer() -> Any:
    """The tokenizer that training makes for CLIP's vocabulary, by way of a small model that has it."""
    from clipkit import models

    return models.create(models.Settings(arch="small")).tokenizer


def clipkit_batches(folder: Path, workers: int, batch: int) -> Generator[int, None, None]:
    """The sizes of the batches that training would get from these shards."""
    from clipkit.data import Settings, open_stream
    from clipkit.types import Preprocess

    cfg = Settings(train=str(folder), batch=batch, workers=workers, crop=CROP)  # type: ignore[arg-type]
    shape = Preprocess(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    stream = open_stream(cfg, clipkit_tokenizer(), shape, seed=0, rank=0, world=1)
    for made in stream.batches(0, 1 << 20):
        assert made.images.shape[1:] == (3, SIDE, SIDE), made.images.shape
        yield len(made)


def open_clip_batches(folder: Path, workers: int, batch: int) -> Generator[int, None, None]:
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


@dataclass
class Filled(torch.utils.data.Dataset):
    """Batches that cost nothing to make but the writing of their memory."""

    floats: bool

    def __getitem__(self, item: int) -> Any:
        from clipkit.data.rows import shared_uint8
        from clipkit.types import Batch

        shape, text, rows = (BATCH, 3, SIDE, SIDE), torch.zeros(BATCH, 77, dtype=torch.long), torch.arange(BATCH)
        if self.floats:
            return torch.full(shape, 0.5), text
        return Batch(shared_uint8(shape).fill_(7), text, rows, [f"{row:09d}" for row in range(BATCH)])


def handed_over(floats: bool) -> Generator[int, None, None]:
    """The sizes of batches that a worker only fills and the main process reads one byte a page of."""
    loader = DataLoader(Filled(floats), sampler=range(1 << 20), batch_size=None, num_workers=1, prefetch_factor=4)  # type: ignore
    for made in loader:
        images = made[0] if floats else made.images
        assert images.flatten()[:: 4096 // images.itemsize].min() > 0
        yield len(images)


@dataclass(frozen=True)
class Cost:
    """What some batches took: samples, CPU milliseconds each, and the most megabytes that a worker held."""

    samples: int
    ms: float
    worker_mb: float


def taken(batches: Iterator[int], count: int) -> Cost:
    """Take the next `count` batches; the cost of as many, because the workers' lead is as large after as before."""
    workers, main = rested(), time.process_time()
    samples = sum(next(batches) for _ in range(count))
    main = time.process_time() - main
    workers = rested() - workers
    held = [_rss_mb(process.pid) for process in active_children() if process.pid]
    return Cost(samples, (main + workers) / max(samples, 1) * 1e3, max(held, default=0.0))


def rested(quiet: int = 5, tick_s: float = 0.04) -> float:
    """CPU seconds of the worker processes, once they have slept over `quiet` looks in a row."""
    before, still = -1.0, 0
    while True:
        pids = [process.pid for process in active_children() if process.pid]
        now = sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # Linux's number of that process's CPU clock
        still = still + 1 if now - before < 1e-3 and not any(map(_runs, pids)) else 0
        if still >= quiet or not pids:
            return now
        before = now
        time.sleep(tick_s)


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S"


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def serve(batches: Generator[int, None, None], warm: int) -> None:
    """After `warm` batches, for each number that comes in as a line: take so many, and answer with what they cost."""
    taken(batches, warm)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(taken(batches, int(line)))), flush=True)
    batches.close()  # while the workers can still be told to stop


SIDES: dict[str, Callable[[Path, int, int], Generator[int, None, None]]] = {
    "clipkit": clipkit_batches,
    "open_clip": open_clip_batches,
    "bytes": lambda folder, workers, batch: handed_over(False),
    "float32": lambda folder, workers, batch: handed_over(True),
}


def main(name: str, folder: str, workers: str, warm: str) -> None:
    """Serve a side until the input ends."""
    serve(SIDES[name](Path(folder), int(workers), BATCH), int(warm))


if __name__ == "__main__":
    main(*sys.argv[1:])
