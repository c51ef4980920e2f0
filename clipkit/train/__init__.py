"""Training: `clipkit train RECIPE key=value ...`, or `accelerate launch -m clipkit.train RECIPE key=value ...`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout

from clipkit import config, distributed
from clipkit.errors import Stopped, UserError
from clipkit.train.loop import train
from clipkit.train.run import prepare
from clipkit.train.settings import Settings
from clipkit.train.watch import watched

__all__ = ["Settings", "from_arguments", "main"]

LOCK_S = 6.0
"""How long the data workers of a run that was killed may hold its lock: they look every 5 s whether it lives."""


def main(recipe: str, overrides: Sequence[str] = ()) -> None:
    """Train by a recipe (a file, or a name in configs/) with overrides.

    Raises: UserError for what the user can fix, BadData, NonFinite, StorageError, RankLost, Stopped.
    """
    torch.set_flush_denormal(True)  # before the first parallel operation: rarely used token rows make AdamW 15x slower
    cfg = config.load(Settings, config.find("configs", recipe), overrides)
    accelerator = distributed.start(log_with=cfg.log_with or None, project_dir=cfg.run)
    folder = Path(cfg.run)
    with _own(folder, accelerator.is_main_process), watched(folder, cfg.timeout_s) as watch:
        stopped = None
        try:
            train(prepare(cfg, accelerator), watch)
        except Stopped as error:
            stopped = error
        watch.beat(watch.step, "ending")
        # only where all ranks end together: after an error on one, leaving the group could wait for the others for ever
        accelerator.end_training()
        distributed.close()
        if stopped:
            raise stopped


@contextmanager
def _own(folder: Path, main: bool) -> Iterator[None]:
    """Keeps a second training out of the folder, by a lock that the kernel frees if this process dies. A folder in
    which nothing came to be is removed again.

    Raises: UserError when another training is there, or the folder is something else's.
    """
    lock = None
    with distributed.together():
        if main:
            lock = _locked(folder)
    if lock is None:
        yield
        return
    with lock:
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()


def _locked(folder: Path) -> AcquireReturnProxy:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder with run=...")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there and not there & {"train.yaml", "checkpoints", ".lock"}:
        raise UserError(f"{folder}: exists and is not a clipkit run; give another folder with run=...")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / ".lock").acquire(timeout=LOCK_S)
    except Timeout:
        raise UserError(f"{folder}: another process is training into it; wait, or give another run=...") from None


def from_arguments(arguments: Sequence[str]) -> None:
    """`RECIPE key=value ...`, as `accelerate launch -m clipkit.train` passes them."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError("train: a recipe is needed: clipkit train RECIPE [key=value ...]; see `clipkit train --help`")
    main(arguments[0], arguments[1:])
