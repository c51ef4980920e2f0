"""The training loop: rate, batch, gradients, clip, step, log; now and then evaluate and save."""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from clipkit import checkpoint, config, distributed, optim
from clipkit.data.augment import augment
from clipkit.data.order import mix
from clipkit.errors import Stopped
from clipkit.log import say
from clipkit.models.load import TEXT_FOLDER
from clipkit.step import gradients
from clipkit.train.log import Log
from clipkit.train.run import Run
from clipkit.types import Batch


def train(run: Run) -> None:
    """Every step from where the run stands to its end; each ends in a state that a checkpoint holds whole."""
    cfg = run.cfg
    parameters = [p for p in run.net.parameters() if p.requires_grad]
    log = Log(run)
    if run.step and _is_due(run, run.cfg.eval.every):
        _evaluate(run, log)  # what a kill between saving and scoring left undone
    if run.step >= run.steps:
        say(f"{run.folder}: all {run.steps} steps are done; nothing is left to do")
        return
    run.model.train()
    with _signals(run), log.progress:
        for batch in log.waiting(run.stream.batches(run.step, run.steps)):
            optim.set_lr(run.optimizer, optim.lr_at(cfg.optim, run.step, run.steps))
            # random numbers are a function of (seed, step, rank): a resumed step draws what the first run drew
            torch.manual_seed(int(mix(cfg.seed, run.step, distributed.rank())) >> 1)
            run.optimizer.zero_grad()
            loss = gradients(run.model, run.objective, _on_device(run, batch), cfg.chunk)
            norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.optim.clip or math.inf)
            run.optimizer.step()
            run.net.clamp_scale()
            if run.ema:
                run.ema.update()
            run.step += 1
            log.step(batch, loss, norm)
            _every_so_often(run, log)


def _on_device(run: Run, batch: Batch) -> Batch:
    """The batch where it is computed on, with its pictures augmented there."""
    moved = batch.to(run.accelerator.device)
    return replace(moved, images=augment(moved.images, batch.position, run.cfg.seed, run.cfg.data.augment))


def _every_so_often(run: Run, log: Log) -> None:
    """Save, stop and evaluate, where it is time for it."""
    began = time.monotonic()
    stop = _stop_agreed(run)
    if stop or _is_due(run, run.cfg.save_every):
        log.finite(always=True)
        if run.main:
            _save(run)
        run.accelerator.wait_for_everyone()
    if stop:
        raise Stopped(f"stopped by {stop} at step {run.step} and saved; the same command goes on from here")
    if _is_due(run, run.cfg.eval.every):
        _evaluate(run, log)
    log.pause(time.monotonic() - began)


def _is_due(run: Run, every: int | None) -> bool:
    """Is it time for what happens every so many steps, and at the end?"""
    return run.step == run.steps or (every is not None and run.step % every == 0)


def _stop_agreed(run: Run) -> str:
    """The signal to stop by, if any rank got one; all ranks learn of it at the same step."""
    if run.accelerator.num_processes == 1 or run.step % run.cfg.log_every:
        return run.stop if run.accelerator.num_processes == 1 else ""
    told = distributed.total(torch.tensor(float(bool(run.stop)), device=run.accelerator.device))
    return (run.stop or "a signal to another rank") if told > 0 else ""


@contextmanager
def _signals(run: Run) -> Iterator[None]:
    """While inside, SIGTERM, SIGINT and SIGUSR1 ask for a save and a stop; a second Ctrl-C stops at once."""

    def ask(number: int, frame: Any) -> None:
        run.stop = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _save(run: Run) -> None:
    files: dict[str, Any] = {
        "model.safetensors": run.net.net.state_dict(),
        "model.yaml": config.to_yaml(run.net.spec),
        "optim.safetensors": optim.state(run.optimizer, run.net.net),
        "train.yaml": config.to_yaml(run.cfg),
        "data.json": json.dumps(run.stream.state(run.step), indent=1),
    }
    if run.ema:
        files["ema.safetensors"] = run.ema.average
    if run.net.text_folder:
        files[TEXT_FOLDER] = run.net.text_folder
    checkpoint.save(run.folder, run.step, files, run.cfg.keep)


def _evaluate(run: Run, log: Log) -> None:
    """The tasks not yet scored at this step, on all ranks, with the averaged weights where the run keeps them."""
    todo = [task for task in run.tasks if (run.step, task.name) not in run.scored]
    if run.ema:
        run.ema.swap()
    run.net.eval()
    for task in todo:
        log.scores(task, task.run(run.net, 0))
    run.model.train()
    if run.ema:
        run.ema.swap()
