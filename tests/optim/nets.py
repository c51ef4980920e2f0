"""A small net with the names of open_clip's, which has all that optimizers tell apart."""

from typing import Any

import torch
from torch import Tensor, nn

from clipkit import optim

KNOWN: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln, self.fc, self.back = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(self.fc(self.ln(x)).relu())


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(1, 6))
        self.proj = nn.Parameter(torch.randn(6, 3))
        self.conv1 = nn.Linear(5, 6)
        self.resblocks = nn.ModuleList(Block() for _ in range(2))

    def no_weight_decay(self) -> set[str]:
        return {"positional_embedding"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x) + self.positional_embedding
        for block in self.resblocks:
            x = block(x)
        return x @ self.proj


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = Tower()
        self.logit_scale = nn.Parameter(torch.full((1,), 2.0))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) * self.logit_scale


def batch(step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The batch [4, 5] of a step."""
    return torch.randn(4, 5, dtype=dtype, generator=torch.Generator().manual_seed(step))


def steps(net: Net, optimizer: Any, first: int, end: int, skipped: int | None = None) -> None:
    """The steps from `first` to before `end`; the gradient of step `skipped` is broken."""
    for step in range(first, end):
        optimizer.zero_grad()
        net(batch(step, net.logit_scale.dtype)).square().mean().backward()
        if step == skipped:
            net.visual.proj.grad = torch.full_like(net.visual.proj, float("nan"))
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optim.set_lr(optimizer, 0.01 / (1 + step))
        optim.update(optimizer, norm)
