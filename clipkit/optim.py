"""AdamW with decay where it belongs, and the rate as a pure function of the step."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from clipkit.config import settings


@settings
class Settings:
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    warmup: Annotated[int, Field(ge=0)] = 500
    """Steps over which the rate rises to its peak."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What the rate does after the warmup: fall to lr_end along a cosine, or stay."""
    lr_end: Annotated[float, Field(ge=0)] = 0.0
    """Rate at the last step of a cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """Decay of weights with more than one dimension; gains, biases and the scale are spared."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """AdamW's averaging of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW's guard against division by zero."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Greatest norm of the gradient; null never clips."""


def lr_at(cfg: Settings, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) in a run of `steps`."""
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    if cfg.schedule == "constant":
        return cfg.lr
    done = min(1.0, (step - cfg.warmup) / max(1, steps - cfg.warmup))
    return cfg.lr_end + (cfg.lr - cfg.lr_end) * (1 + math.cos(math.pi * done)) / 2


def build(cfg: Settings, module: nn.Module) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`, decay only where they have more than one dimension."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors under `what/parameter name`."""
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    return {f"{what}/{names[p]}": x for p, kept in optimizer.state.items() for what, x in kept.items()}


def load_state(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `state` gave."""
    parameters = dict(module.named_parameters())
    kept: dict[Tensor, dict[str, Any]] = {}
    for key, x in tensors.items():
        what, name = key.split("/", 1)
        parameter = parameters[name]
        kept.setdefault(parameter, {})[what] = x.to(parameter.device)
    optimizer.state.update(kept)
