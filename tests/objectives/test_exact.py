"""Rule 1: on any number of ranks, whole or in chunks, the gradient is that of one process with the whole batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from clipkit import objectives, step
from clipkit.types import Batch, Embeddings
from tests import two_ranks

B, D = 12, 7
CHUNKS = (None, 1, 4, 5)  # per rank; 5 leaves an uneven last chunk


class Towers(nn.Module):
    """A small dual encoder in float64; dropout makes its forward draw random numbers."""

    def __init__(self, scale: float, bias: float | None, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see = nn.Sequential(nn.Flatten(), nn.Linear(48, D), nn.Tanh(), nn.Dropout(dropout), nn.Linear(D, D))
        self.read = nn.Sequential(nn.Embedding(50, D), nn.Dropout(dropout), nn.Linear(D, D))
        self.scale = nn.Parameter(torch.tensor([scale]).log())
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias]))
        self.double()

    def forward(self, image: Tensor, text: Tensor) -> Embeddings:
        seen = normalize(self.see(image.double() / 255), dim=-1)
        read = normalize(self.read(text).mean(1), dim=-1)
        return Embeddings(seen, read, self.scale.exp()[0], None if self.bias is None else self.bias[0])


def batch(n: int = B) -> Batch:
    dice = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 3, 4, 4), generator=dice, dtype=torch.uint8)
    text = torch.randint(0, 50, (n, 5), generator=dice)
    return Batch(pixels, text, torch.arange(n), [str(i) for i in range(n)])


def build(name: str) -> tuple[objectives.Objective, Towers]:
    objective = objectives.build(objectives.parse(name))
    return objective, Towers(objective.scale_init, objective.bias_init)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}


def plain(name: str, n: int = B) -> tuple[Tensor, dict[str, Tensor]]:
    objective, model = build(name)
    loss = objective(model(batch(n).images, batch(n).text), batch(n))
    loss.backward()
    return loss.detach(), gradients(model)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        torch.testing.assert_close(
            found[name], x, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", objectives.names())
@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_on_one_rank_equal_a_plain_pass(name: str, chunk: int | None) -> None:
    objective, model = build(name)
    wanted_loss, wanted = plain(name)
    loss = step.gradients(model, objective, batch(), chunk)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-10, atol=1e-10)
    assert_same(gradients(model), wanted)


def _on_each(rank: int, name: str) -> list[dict[str, Any]]:
    results = []
    for chunk in CHUNKS:
        objective, model = build(name)
        wrapped = DistributedDataParallel(model)
        mine = batch().rows(rank * B // 2, (rank + 1) * B // 2)
        loss = step.gradients(wrapped, objective, mine, chunk)
        results.append({"loss": loss, "grads": gradients(wrapped)})
    return results


@pytest.mark.parametrize("name", objectives.names())
def test_two_ranks_equal_one_plain_pass(name: str) -> None:
    wanted_loss, wanted = plain(name)
    first, second = two_ranks.run(_on_each, name)
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close((one["loss"] + two["loss"]) / 2, wanted_loss, rtol=1e-10, atol=1e-10)
        assert_same(one["grads"], wanted)
        assert_same(two["grads"], wanted)


@pytest.mark.parametrize("name", objectives.names())
def test_a_batch_of_one_pair_has_a_finite_gradient(name: str) -> None:
    _, grads = plain(name, n=1)
    assert all(bool(torch.isfinite(x).all()) for x in grads.values())


@pytest.mark.parametrize("name", objectives.names())
def test_dropout_is_the_same_in_both_passes_of_a_chunk(name: str) -> None:
    objective = objectives.build(objectives.parse(name))
    chunked, kept = (Towers(objective.scale_init, objective.bias_init, dropout=0.5) for _ in range(2))
    torch.manual_seed(7)
    step.gradients(chunked, objective, batch(), 5)
    after = torch.rand(3)
    torch.manual_seed(7)
    outs = [kept(part.images, part.text) for part in (batch().rows(0, 5), batch().rows(5, 10), batch().rows(10, B))]
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
    test_chunks_on_one_rank_equal_a_plain_pass("mine", 5)
    spec = objectives.parse({"name": "mine", "weight": 3})
    assert spec == {"name": "mine", "weight": 3.0, "scale_init": 5.0, "bias_init": None}
