"""Muon for the matrices of hidden layers and AdamW for the rest, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon over the groups with `hidden`, fused AdamW over the others.

    The update of a matrix is scaled to the size that AdamW's has (0.2 sqrt(longer side), arXiv 2502.16982), so that one
    rate and one decay serve both parts. Equal to torch.optim.Muon(adjust_lr_fn="match_rms_adamw"); over shards (FSDP2)
    a matrix is gathered before it is made orthogonal, while torch multiplies the shards and rounds them in bfloat16.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.momentum, self.nesterov, self.ns_steps = momentum, nesterov, ns_steps
        self.hidden = [group for group in self.param_groups if group["hidden"]]
        rest = [group for group in self.param_groups if not group["hidden"]]
        self.adamw = torch.optim.AdamW(rest, lr=lr, betas=betas, eps=eps, fused=True)
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both parts."""
        assert closure is None
        for group in self.hidden:
            for p in group["params"]:
                if p.grad is not None:
                    self._turn(p, p.grad, group["lr"], group["weight_decay"])
        self.adamw.step()

    def _turn(self, p: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        mean = state["momentum_buffer"].lerp_(grad, 1 - self.momentum)
        update = grad.lerp(mean, self.momentum) if self.nesterov else mean
        if isinstance(update, DTensor):
            whole = orthogonal(update.full_tensor(), self.ns_steps)
            update = distribute_tensor(whole, update.device_mesh, update.placements, src_data_rank=None)
        else:
            update = orthogonal(update, self.ns_steps)
        p.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * 0.2 * max(p.shape) ** 0.5)


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """About U V^T of `x` = U S V^T [m, n] in bfloat16: singular values within 0.5 to 1.5 after 5 Newton-Schulz `steps`.

    Source: kellerjordan.github.io/posts/muon, as in torch.optim.Muon.
    """
    a, b, c = QUINTIC
    wide = x.to(torch.bfloat16, copy=True)
    wide = wide.T if x.shape[0] > x.shape[1] else wide
    wide = wide.div_(wide.norm().clamp(min=1e-7))  # all singular values below 1
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if x.shape[0] > x.shape[1] else wide
