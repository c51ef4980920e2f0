"""One step of the optimizer, unless the gradient is not finite."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def update(optimizer: Any, norm: Tensor) -> None:
    """Step, unless the gradient's `norm` [] is not finite: then weights, moments and step counts stay as they are.

    Fused AdamW decides on the device, by the flag that a gradient scaler would set; others wait for the number.
    """
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    finite = torch.isfinite(norm)
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = None, finite.logical_not().float()
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
    elif finite:
        optimizer.step()
