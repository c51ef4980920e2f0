"""The training loop: rate, batch, gradients, clip, step, log; now and then evaluate and save."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from clipkit import distributed, optim
from clipkit.data.order import mix
from clipkit.errors import Stopped
from clipkit.log import say
from clipkit.step import gradients
from clipkit.train.feed import placer
from clipkit.train.log import Log
from clipkit.train.run import Run
from clipkit.train.save import save
from clipkit.train.scoring import evaluate


def train(run: Run) -> None:
    """Every step from where the run stands to its end; each ends in a state that a checkpoint holds whole."""
    cfg = run.cfg
    parameters = [p for p in run.net.parameters() if p.requires_grad]
    log = Log(run)
    if run.step and _is_due(run, run.cfg.eval.every):
        evaluate(run, log)  # what a kill between saving and scoring left undone
    if run.step >= run.steps:
        say(f"{run.folder}: all {run.steps} steps are done; nothing is left to do")
        return
    run.model.train()
    place = placer(run)
    with _signals(run), log.progress:
        for batch in log.waiting(run.stream.batches(run.step, run.steps)):
            optim.set_lr(run.optimizer, optim.lr_at(cfg.optim, run.step, run.steps))
            # random numbers are a function of (seed, step, rank): a resumed step draws what the first run drew
            torch.manual_seed(int(mix(cfg.seed, run.step, distributed.rank())) >> 1)
            run.optimizer.zero_grad()
            loss = gradients(run.model, run.objective, batch, cfg.chunk, place)
            norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.optim.clip or math.inf)
            run.optimizer.step()
            run.net.clamp_scale()
            if run.ema:
                run.ema.update()
            run.step += 1
            log.step(batch, loss, norm)
            _every_so_often(run, log)


def _every_so_often(run: Run, log: Log) -> None:
    """Save, stop and evaluate, where it is time for it."""
    began = time.monotonic()
    stop = _stop_agreed(run)
    if stop or _is_due(run, run.cfg.save_every):
        log.finite(always=True)
        if run.main:
            save(run)
        run.accelerator.wait_for_everyone()
    if stop:
        raise Stopped(f"stopped by {stop} at step {run.step} and saved; the same command goes on from here")
    if _is_due(run, run.cfg.eval.every):
        evaluate(run, log)
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
