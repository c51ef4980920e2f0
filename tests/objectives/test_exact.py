"""Rule 1: on any number of ranks, whole or in chunks, under DDP and FSDP2, in many tiles or one, the gradient is that
of one process with the whole batch."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from clipkit import objectives, step
from clipkit.objectives import _tiles
from clipkit.types import Batch, Embeddings
from tests import two_ranks

B, D = 20, 7
WAYS = ((None, False), (4, False), (4, True))  # (chunk per rank: uneven ones on 2 and 4 ranks, cache on the host)
NEAR = {torch.float64: 1e-10, torch.float32: 2e-5}


class Towers(nn.Module):
    """A small dual encoder; dropout makes its forward draw random numbers. Scale and bias are sums, not views: those
    would look into weights that FSDP2 takes away after the forward."""

    def __init__(
        self, scale: float, bias: float | None, dropout: float = 0.0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see = nn.Sequential(nn.Flatten(), nn.Linear(48, D), nn.Tanh(), nn.Dropout(dropout), nn.Linear(D, D))
        self.read = nn.Sequential(nn.Embedding(50, D), nn.Dropout(dropout), nn.Linear(D, D))
        self.scale = nn.Parameter(torch.tensor([scale]).log())
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias]))
        self.dtype = dtype
        self.to(dtype)

    def forward(self, image: Tensor, text: Tensor) -> Embeddings:
        seen = normalize(self.see(image.to(self.dtype) / 255), dim=-1)
        read = normalize(self.read(text).mean(1), dim=-1)
        return Embeddings(seen, read, self.scale.exp().sum(), None if self.bias is None else self.bias.sum())


def batch(n: int = B) -> Batch:
    dice = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 3, 4, 4), generator=dice, dtype=torch.uint8)
    text = torch.randint(0, 50, (n, 5), generator=dice)
    return Batch(pixels, text, torch.arange(n), [str(i) for i in range(n)])


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[objectives.Objective, Towers]:
    objective = objectives.build(objectives.parse(name))
    return objective, Towers(objective.scale_init, objective.bias_init, dtype=dtype)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By the names of the bare model, whole where they lie in shards."""
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: x.full_tensor() if hasattr(x, "full_tensor") else x for name, x in found.items()}


def plain(name: str, n: int = B, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    objective, model = build(name, dtype)
    loss = objective(model(batch(n).images, batch(n).text), batch(n))
    loss.backward()
    return loss.detach(), gradients(model)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], near: float = 1e-10, case: Any = "") -> None:
    assert found.keys() == wanted.keys(), case
    for name, x in wanted.items():
        torch.testing.assert_close(
            found[name], x, rtol=near, atol=near, msg=lambda text, name=name: f"{case} {name}: {text}"
        )


@pytest.mark.parametrize("name", objectives.names())
@pytest.mark.parametrize(("chunk", "on_host"), [*WAYS, (1, False), (7, False), (B - 1, True), (B, True)])
def test_chunks_on_one_rank_equal_a_plain_pass(name: str, chunk: int | None, on_host: bool) -> None:
    objective, model = build(name)
    wanted_loss, wanted = plain(name)
    loss = step.gradients(model, objective, batch(), chunk, on_host=on_host)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-10, atol=1e-10)
    assert_same(gradients(model), wanted)


def _ddp(model: Towers) -> nn.Module:
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def _fsdp(model: Towers, **options: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in (model.see, model.read):
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def _fsdp_reshard(model: Towers) -> nn.Module:
    return _fsdp(model, reshard_after_forward=True)


WRAPS = {"ddp": _ddp, "fsdp2": _fsdp, "fsdp2, resharded": _fsdp_reshard}
CASES = [
    *itertools.product(objectives.names(), ("ddp", "fsdp2"), (torch.float64,), WAYS),
    *itertools.product(objectives.names(), ("ddp", "fsdp2"), (torch.float32,), WAYS[1:2]),
    *itertools.product(objectives.names(), ("fsdp2, resharded",), (torch.float64,), WAYS[1:2]),
]


def _on_each(rank: int) -> list[dict[str, Any]]:
    """Loss and gradient of each of the cases on this rank's share of the batch, twice over, as a run would."""
    world, results = dist.get_world_size(), []
    _tiles.SIDE = 5  # several uneven tiles even in so small a batch
    for name, wrap, dtype, (chunk, on_host) in CASES:
        objective, model = build(name, dtype)
        wrapped = WRAPS[wrap](model)
        mine = batch().rows(rank * B // world, (rank + 1) * B // world)
        for _ in range(2):
            wrapped.zero_grad()
            loss = step.gradients(wrapped, objective, mine, chunk, on_host=on_host)
        results.append({"loss": loss, "grads": gradients(wrapped)})
    return results


def assert_equal_to_plain(ranks: list[list[dict[str, Any]]]) -> None:
    for i, (name, wrap, dtype, way) in enumerate(CASES):
        case, near = (len(ranks), name, wrap, dtype, way), NEAR[dtype]
        wanted_loss, wanted = plain(name, dtype=dtype)
        mean = torch.stack([rank[i]["loss"] for rank in ranks]).mean()
        torch.testing.assert_close(
            mean, wanted_loss, rtol=near, atol=near, msg=lambda text, case=case: f"{case} {text}"
        )
        for rank in ranks:
            assert_same(rank[i]["grads"], wanted, near, case)


@pytest.mark.parametrize("world", [2, 4])
def test_each_of_several_ranks_has_the_gradient_of_one_plain_pass(world: int) -> None:
    assert_equal_to_plain(two_ranks.run(_on_each, world=world))


@contextmanager
def _group_of_one(folder: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_a_group_of_one_rank_has_the_gradient_of_a_plain_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "SIDE", _tiles.SIDE)  # put back what the rank changes
    with _group_of_one(tmp_path):
        found = _on_each(0)
    assert_equal_to_plain([found])


@pytest.mark.parametrize("name", objectives.names())
def test_a_batch_of_one_pair_has_a_finite_gradient(name: str) -> None:
    _, grads = plain(name, n=1)
    assert all(bool(torch.isfinite(x).all()) for x in grads.values())


@pytest.mark.parametrize("name", objectives.names())
def test_dropout_is_the_same_in_both_passes_of_a_chunk(name: str) -> None:
    objective = objectives.build(objectives.parse(name))
    chunked, kept = (Towers(objective.scale_init, objective.bias_init, dropout=0.5) for _ in range(2))
    torch.manual_seed(7)
    step.gradients(chunked, objective, batch(), 7)
    after = torch.rand(3)
    torch.manual_seed(7)
    parts = [batch().rows(*ends) for ends in ((0, 6), (6, 13), (13, 20))]  # as even as can be
    outs = [kept(part.images, part.text) for part in parts]
    image, text = (torch.cat(sides) for sides in zip(*(out.pair() for out in outs), strict=True))
    objective(Embeddings(image, text, outs[0].scale, outs[0].bias), batch()).backward()
    assert_same(gradients(chunked), gradients(kept))
    assert torch.equal(after, torch.rand(3)), "a chunked step leaves the random numbers where a plain one would"


def test_a_new_objective_file_is_found_without_an_edit(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        "from clipkit.config import settings\n"
        "@settings\nclass Setting:\n"
        "    weight: float = 2.0\n    scale_init: float = 5.0\n    bias_init: float | None = None\n"
        "    def __call__(self, out, batch):\n"
        "        image, text = out.pair()\n"
        "        return self.weight * out.scale * (image - text).square().sum(1).mean()\n"
    )
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path)])
    assert "mine" in objectives.names()
    test_chunks_on_one_rank_equal_a_plain_pass("mine", 5, False)
    spec = objectives.parse({"name": "mine", "weight": 3})
    assert spec == {"name": "mine", "weight": 3.0, "scale_init": 5.0, "bias_init": None}
