"""What an optimizer remembers, as named tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

OF_GROUP = "group."
COUNTS = ("step", "mu_product")
KINDS = {"bool": bool, "int": int, "float": float}
DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


def state(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors under `what/parameter name`, numbers under `what:type/parameter name`.

    What it keeps once for a group of parameters (the step of LAMB) is under `group.what` of each of them, so that it is
    found again under other groups. Under FSDP2 tensors are as the optimizer holds them: DTensors.
    """
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    found: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        shared = {f"{OF_GROUP}step": group["step"]} if "step" in group else {}
        for p in group["params"]:
            for what, x in {**optimizer.state.get(p, {}), **shared}.items():
                if isinstance(x, Tensor):
                    found[f"{what}/{names[p]}"] = x.clone() if what in shared else x
                else:
                    found[f"{what}:{type(x).__name__}/{names[p]}"] = torch.tensor(x, dtype=DTYPES[type(x)])
    return found


def load_state(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `state` gave; for sharded parameters either whole tensors, the same on all ranks, or DTensors."""
    parameters = dict(module.named_parameters())
    group_of: dict[Tensor, dict[str, Any]] = {p: group for group in optimizer.param_groups for p in group["params"]}
    for key, x in tensors.items():
        what, name = key.split("/", 1)
        what, _, kind = what.partition(":")
        parameter = parameters[name]
        group = group_of[parameter]
        if what.startswith(OF_GROUP):
            group[what.removeprefix(OF_GROUP)] = KINDS[kind](x.item()) if kind else x.cpu()
        else:
            value = KINDS[kind](x.item()) if kind else _placed(x, parameter, _is_on_host(what, x, group))
            optimizer.state[parameter][what] = value


def _is_on_host(what: str, x: Tensor, group: dict[str, Any]) -> bool:
    """torch and timm count on the host, so that no step waits for the device, unless the kernel itself counts."""
    return what in COUNTS and x.ndim == 0 and not (group.get("fused") or group.get("capturable"))


def _placed(x: Tensor, parameter: nn.Parameter, on_host: bool) -> Tensor:
    x = x.to("cpu" if on_host else parameter.device)
    if isinstance(parameter, DTensor) and not isinstance(x, DTensor) and x.shape == parameter.shape:
        return distribute_tensor(x, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return x
