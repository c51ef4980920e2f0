"""The learning rate as a pure function of the step."""

import math

import torch

from clipkit.optim.settings import Settings


def lr_at(cfg: Settings, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) in a run of `steps`."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    if cfg.schedule == "constant":
        return cfg.lr
    if cfg.schedule == "cosine":
        done = min(1.0, (step - cfg.warmup) / max(1, steps - cfg.warmup))
        return cfg.lr_end + (cfg.lr - cfg.lr_end) * (1 + math.cos(math.pi * done)) / 2
    begin = min(step, max(cfg.warmup, steps - round(cfg.cooldown * steps)))
    high = cfg.lr if cfg.schedule == "wsd" else cfg.lr * _rsqrt(begin, cfg.warmup)
    done = min(1.0, (step - begin) / max(1, steps - begin))
    return cfg.lr_end + (high - cfg.lr_end) * (1 - (math.sqrt(done) if cfg.cooldown_shape == "sqrt" else done))


def _rsqrt(step: int, warmup: int) -> float:
    """1 at the end of the warmup (at step 0 without one), then falling with the root of the step."""
    scale = max(1, warmup)
    return math.sqrt(scale / (scale + step - warmup))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in the next step, each group at its own share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
