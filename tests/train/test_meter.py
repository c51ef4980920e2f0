"""Numbers of a run's rows against plain arithmetic, on one process and on shards, and a profiler's trace."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from clipkit import models, optim, parallel
from clipkit.log import read_rows
from clipkit.train import meter
from clipkit.train.meter import Meter
from clipkit.types import Batch
from tests import making, two_ranks


def small(arch: str) -> models.DualEncoder:
    torch.manual_seed(3)
    return models.create(models.Settings(arch=arch), 10.0)


def batch(net: models.DualEncoder, pairs: int = 4) -> Batch:
    images = torch.arange(pairs * 3 * 32 * 32).reshape(pairs, 3, 32, 32).mul(7).remainder(256).to(torch.uint8)
    return Batch(
        images, net.tokenizer(["a red dog"] * pairs)[:, :16], torch.arange(pairs), [str(i) for i in range(pairs)]
    )


class Toy(nn.Module):
    """What a meter needs of a model, without the seconds that open_clip takes on each rank."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Module()
        self.net.visual = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Linear(8 * 8 * 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net.visual(x)


def one_step(shard: bool) -> tuple[dict[str, Any], Toy]:
    """The row of a step of AdamW, and the model after it."""
    net: Any = Toy()
    if shard:
        fully_shard(net)
    rate = 1e-2
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    gauge = Meter(net, optimizer)
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net(pictures).square().sum().backward()
    gauge.count(Batch(pictures, torch.zeros(4, 8), torch.arange(4), []))
    gauge.before_update()
    parallel.clip(list(net.parameters()), 1e-3)
    optimizer.step()
    return gauge.row(2.0), net


def on_a_rank(rank: int) -> dict[str, Tensor]:
    row, _ = one_step(shard=True)
    return {name: torch.tensor(value) for name, value in row.items() if name != "peak_memory_gb"}


def test_updates_are_the_change_of_the_weights_on_one_process_and_on_shards() -> None:
    row, net = one_step(shard=False)
    changes = [(p - old).detach() for p, old in zip(net.parameters(), Toy().parameters(), strict=True)]
    assert row["update_norm"] == pytest.approx(sum(float(x.square().sum()) for x in changes) ** 0.5, rel=1e-5)
    assert row["patch_update_rms"] == pytest.approx(float(changes[0].square().mean().sqrt()) / 1e-2, rel=1e-4)
    assert row["patch_grad_norm"] > 1e-3  # as it was before it was clipped
    assert row["pairs_per_s_per_gpu"] == 2.0 and 0.05 < row["peak_memory_gb"] < 100 and "mfu" not in row

    for other in two_ranks.run(on_a_rank):
        assert other.keys() == row.keys() - {"peak_memory_gb"}
        for name, value in other.items():
            assert value.item() == pytest.approx(row[name], rel=1e-4), name


def test_mfu_is_what_the_pairs_needed_over_what_the_device_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_peak", lambda net: 1e9)
    net = small(making.architecture(tmp_path))
    gauge = Meter(net, optim.build(optim.Settings(), net.net))
    one = batch(net)
    gauge.count(one)
    # patches 4 of 16 pixels, width 32: a projection, one block that is read at one token of five, a projection
    image = 2 * 4 * 768 * 32 + 2 * 2 * 5 * 32 * 32 + 2 * 2 * 32 * 32 + 4 * 5 * 32 + 2 * 2 * 32 * 128 + 2 * 32 * 16
    whole = 2 * 16 * 16 * 64 + 4 * 16 * 16 * 16 + 2 * 2 * 16 * 16 * 64  # a block over 16 tokens, width 16
    last = 2 * 16 * 16 * 32 + 2 * 2 * 16 * 16 + 4 * 16 * 16 + 2 * 2 * 16 * 64
    assert gauge.row(0.5)["mfu"] == pytest.approx(4 * 3 * (image + whole + last + 2 * 16 * 16) / 0.5 / 1e9)
    assert gauge.row(0.5)["mfu"] == 0.0


def test_what_is_not_finite_is_null_in_a_row(tmp_path: Path) -> None:
    net = small(making.architecture(tmp_path))
    gauge = Meter(net, optim.build(optim.Settings(), net.net))
    net.net.visual.conv1.weight.grad = torch.full_like(net.net.visual.conv1.weight, torch.nan)
    gauge.before_update()
    row = gauge.row(1.0)
    assert row["patch_grad_norm"] is None and row["update_norm"] == 0.0 and row["patch_update_rms"] == 0.0


def test_a_run_writes_its_numbers_and_traces_the_steps_asked_for(tmp_path: Path) -> None:
    recipe = making.recipe(tmp_path, steps=6, log_every=2)
    done = making.clipkit("train", str(recipe), "profile.start=2", "profile.steps=2")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    wanted = {"update_norm", "patch_grad_norm", "patch_update_rms", "peak_memory_gb", "pairs_per_s_per_gpu"}
    assert [row["step"] for row in rows] == [2, 4, 6] and all(wanted <= row.keys() for row in rows)
    assert all(row["update_norm"] > 0 and row["pairs_per_s_per_gpu"] == row["pairs_per_s"] for row in rows)
    trace = tmp_path / "run" / "profile" / "rank0-step2.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    updates = [one for one in events if one.get("name", "").startswith("Optimizer.step#")]
    assert len(updates) == 2 and "Self CPU" in done.stderr and str(trace) in done.stderr
