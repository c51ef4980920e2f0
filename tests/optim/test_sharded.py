"""Over shards of weights (FSDP2 on two gloo ranks) optimizers and averages equal one process."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from clipkit import models, optim
from clipkit.errors import UserError
from clipkit.optim.build import SHARDED
from tests import two_ranks
from tests.optim.nets import KNOWN, Net, batch

STEPS, SAVED, SKIPPED = 3, 2, 1


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone() for key, x in tensors.items()}


def build(name: str, shard: bool) -> tuple[Net, Any, models.Ema]:
    net = Net() if name == "muon" else Net().double()  # muon rounds to bfloat16: its float64 is no more exact
    if shard:
        for block in net.visual.resblocks:
            fully_shard(block)
        fully_shard(net, ignored_params={net.frozen})
    return net, optim.build(optim.Settings(name=name, **KNOWN), net), models.Ema(net, 0.9)


def train(name: str, rank: int | None) -> dict[str, Tensor]:
    """Everything after some steps, of which one is skipped, and a save and resume in between: on one process, or on
    this rank of two, which resumes from whole tensors and from DTensors in turn."""
    net, optimizer, ema = build(name, rank is not None)
    for step in range(STEPS):
        if step == SAVED:
            weights, state, average = net.state_dict(), optim.state(optimizer, net), ema.average
            sharded = rank is not None and name == "adamw"
            before = net
            net, optimizer, ema = build(name, rank is not None)
            net.load_state_dict(before.state_dict())
            optim.load_state(optimizer, net, state if sharded else whole(state))
            ema.load(average if sharded else whole(average))
            assert weights.keys() == average.keys()
        x = batch(step, net.logit_scale.dtype)
        optimizer.zero_grad()
        net(x if rank is None else x[rank * 2 : rank * 2 + 2]).square().mean().backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], 1.0)
        optim.update(optimizer, norm * float("nan") if step == SKIPPED else norm)
        ema.update()
    kept = {f"ema/{key}": x for key, x in whole(ema.average).items()}
    ema.swap()
    assert all(torch.equal(kept[f"ema/{key}"], x) for key, x in whole(net.state_dict()).items())
    ema.swap()
    return {**whole(net.state_dict()), **whole(optim.state(optimizer, net)), **kept}


def _ranks(rank: int) -> dict[str, dict[str, Tensor]]:
    net = build("adamw", True)[0]
    with pytest.raises(UserError, match=r"optim.name=nmuon: not known to be exact under FSDP2; use one of adamw, lamb"):
        optim.build(optim.Settings(name="nmuon"), net)
    return {name: train(name, rank) for name in SHARDED}


def test_two_ranks_with_shards_equal_one_process() -> None:
    one, other = two_ranks.run(_ranks)
    for name in SHARDED:
        wanted = train(name, None)
        assert one[name].keys() == other[name].keys() == wanted.keys()
        for key, x in wanted.items():
            near = 1e-6 if name == "muon" or x.dtype != torch.float64 else 1e-12
            torch.testing.assert_close(
                one[name][key], x, rtol=near, atol=near, msg=lambda m, at=(name, key): f"{at}: {m}"
            )
            assert torch.equal(one[name][key], other[name][key])
