"""However the weights lie on the ranks, a step is the step of one process that holds all of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit import models, objectives, parallel, step
from clipkit.distributed import Sharding
from clipkit.errors import ClipkitError, UserError
from clipkit.types import Batch
from tests import two_ranks
from tests.making import architecture

B, STEPS, CLIP = 8, 3, 0.1
WAYS: dict[str, Sharding | None] = {
    "DDP": None,
    "FSDP2": Sharding(),
    "FSDP2, kept between forward and backward": Sharding(reshard=False),
    "HSDP": Sharding(copies=2),
}


def encoder(arch: str) -> models.DualEncoder:
    torch.manual_seed(0)
    return models.create(models.Settings(arch=arch), 1.0).double()


def batch() -> Batch:
    dice = torch.Generator().manual_seed(1)
    pixels = torch.randn(B, 3, 32, 32, generator=dice, dtype=torch.float64)
    text = torch.randint(1, 400, (B, 16), generator=dice)
    text[:, -1] = 49407
    return Batch(pixels, text, torch.arange(B), [str(i) for i in range(B)])


def trained(arch: str, way: Sharding | None, chunk: int | None, rank: int, world: int) -> dict[str, Tensor]:
    """The weights, whole, and the gradients' norms after some steps in which clipping and clamping have work to do."""
    net = encoder(arch)
    frozen = [p for name, p in net.named_parameters() if "token_embedding" in name]
    frozen[0].requires_grad_(False)
    model = parallel.wrap(net, way)
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.05, fused=True)
    objective = objectives.build(objectives.parse("softmax"))
    norms = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        step.gradients(model, objective, batch().rows(rank * B // world, (rank + 1) * B // world), chunk)
        norms.append(parallel.clip(weights, CLIP))
        assert type(norms[-1]) is Tensor and norms[-1].shape == ()
        optimizer.step()
        net.clamp_scale()
    assert parallel.is_sharded(net) == (way is not None and world > 1)
    copy = parallel.whole(net).double()
    parallel.fill(copy, net.net.state_dict())
    parallel.same_weights(net)
    return {"norms": torch.stack(norms), **copy.net.state_dict()}


def _on_each(rank: int, arch: str) -> dict[str, Any]:
    out: dict[str, Any] = {f"{name} {chunk}": trained(arch, WAYS[name], chunk, rank, 4) for name, chunk in CASES}
    net = encoder(arch)
    if rank == 2:
        with torch.no_grad():
            net.net.visual.proj[3, 1] = net.net.visual.proj[3, 1].nextafter(torch.tensor(9.0).double())
    for key, work in {
        "parted": lambda: parallel.same_weights(net),
        "copies": lambda: parallel.wrap(net, Sharding(copies=3)),
    }.items():
        try:
            work()
        except (ClipkitError, UserError) as error:
            out[key] = str(error)
    return out


CASES = [("DDP", None), ("FSDP2", None), ("FSDP2", 1), ("FSDP2, kept between forward and backward", 1), ("HSDP", None)]


def test_four_ranks_make_the_steps_of_one_and_notice_weights_that_part(tmp_path: Path) -> None:
    arch = architecture(tmp_path)
    wanted = trained(arch, None, None, 0, 1)
    assert wanted["norms"][0] > CLIP and wanted["logit_scale"].item() == 0, "both bounds were met"
    ranks = two_ranks.run(_on_each, arch, world=4)
    for rank in ranks:
        for name, chunk in CASES:
            found = rank[f"{name} {chunk}"]
            assert found.keys() == wanted.keys()
            for weight, x in wanted.items():
                torch.testing.assert_close(found[weight], x, rtol=1e-10, atol=1e-10, msg=f"{name} {chunk} {weight}")
        assert "weights have parted: 1 of " in rank["parted"] and "first net.visual.proj" in rank["parted"]
        assert rank["copies"] == "dp_replicate_size=3: 4 processes cannot be split into so many copies"
