"""Building an optimizer by name: our three, timm's and torch's."""

import difflib
import functools
import inspect
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from clipkit.errors import UserError
from clipkit.optim.groups import groups
from clipkit.optim.muon import Muon
from clipkit.optim.settings import Settings

OWN = ("adamw", "lamb", "muon")
REFUSED = {
    "adahessian": "it needs second derivatives",
    "LBFGS": "it evaluates a batch more than once",
    "SparseAdam": "it needs sparse gradients",
    "Rprop": "it needs the whole data set in each batch",
    "Muon": "it takes matrices alone; muon takes the rest too",
    **dict.fromkeys(("kron", "kronc", "kronw"), "it draws random numbers of its own, which no checkpoint holds"),
}
SHARDED = (*OWN, "adafactorbv", "lion", "nadamw", "sgd")
"""What is shown to equal one process over shards of weights (FSDP2)."""


def build(cfg: Settings, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `cfg` over the trainable parameters of `module`, grouped by decay and rate.

    Under FSDP2 `module` is sharded already.
    Raises: UserError when there is no such optimizer, or it does not take what it is given.
    """
    make, cls, arguments = _chosen(cfg)
    _check_options(cfg, cls)
    if cfg.name not in SHARDED and any(isinstance(p, DTensor) for p in module.parameters()):
        raise UserError(f"optim.name={cfg.name}: not known to be exact under FSDP2; use one of {', '.join(SHARDED)}")
    over = groups(cfg, module, matrices=cfg.name == "muon")
    try:
        return make(over, **{"lr": cfg.lr, "weight_decay": cfg.weight_decay, **arguments, **cfg.options})
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        raise UserError(f"optim.name={cfg.name}, optim.options={cfg.options}: {error}") from error


def _chosen(cfg: Settings) -> tuple[Any, Any, dict[str, Any]]:
    """(what makes the optimizer of groups, its class, which arguments it gets beside rate, decay and options)."""
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers  # type: ignore[attr-defined]

    moments: dict[str, Any] = {"betas": cfg.betas, "eps": cfg.eps}
    classes = {
        name: cls
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
    }
    if cfg.name in REFUSED:
        raise UserError(f"optim.name={cfg.name}: cannot be used: {REFUSED[cfg.name]}; try adamw, lamb or muon")
    if cfg.name == "adamw":
        return torch.optim.AdamW, torch.optim.AdamW, {**moments, "fused": True}
    if cfg.name == "muon":
        return Muon, Muon, moments
    if cfg.name in classes:
        return classes[cfg.name], classes[cfg.name], {}
    known = [str(name) for name in list_optimizers()]
    if cfg.name not in known:
        close = difflib.get_close_matches(cfg.name, [*known, *classes], 3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"give one of: {', '.join([*known, *classes])}"
        raise UserError(f"optim.name={cfg.name}: neither timm nor torch.optim has it; {hint}")
    make = functools.partial(create_optimizer_v2, opt=cfg.name)
    # timm's LAMB would clip the gradient once more
    more = {**moments, "max_grad_norm": None} if cfg.name == "lamb" else {}
    return make, get_optimizer_info(cfg.name).opt_class, more


def _check_options(cfg: Settings, cls: Any) -> None:
    """Refuse options that have settings of their own, or that `cls` does not take, and settings that it ignores."""
    moments = ("betas", "eps")
    ours = ("params", "groups", "lr", "weight_decay", *(moments if cfg.name in OWN else ()))
    takes = None if isinstance(cls, str) else set(inspect.signature(cls).parameters) - set(ours)
    for option in cfg.options:
        if option in ours:
            raise UserError(f"optim.options.{option}: has a setting of its own, optim.{option}")
        if takes is not None and option not in takes:
            close = difflib.get_close_matches(option, takes, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"{cfg.name} takes {', '.join(sorted(takes))}"
            raise UserError(f"optim.options.{option}: unknown to {cfg.name}; {hint}")
    for moment in moments:
        if cfg.name not in OWN and getattr(cfg, moment) != getattr(Settings(), moment):
            raise UserError(f"optim.{moment}: is for {', '.join(OWN)}; for {cfg.name} set optim.options")
