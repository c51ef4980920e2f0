"""The tiled losses equal their plain twins: one matrix of logits, and autograd."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from clipkit.objectives import _tiles, sigmoid, softmax
from clipkit.types import Batch, Embeddings
from tests import two_ranks

B, D = 12, 5
SCALES = (9.0, 90.0)  # small logits, and others
KINDS = [softmax.Setting(), softmax.Setting(label_smoothing=0.1), sigmoid.Setting()]
TILES = [(1024, 1.0), (5, 0.0), (5, 3e-4), (1, 1.0), (4, 0.0)]  # side, and MB kept: all, no, one or two, all tiles, no
ANY = Batch(torch.empty(0), torch.empty(0), torch.empty(0), [])


def plain(kind: Any, out: Embeddings) -> Tensor:
    """The loss of one process with all pairs."""
    image, text = out.pair()
    logits = out.scale * image @ text.T
    if out.bias is not None:
        return -logsigmoid((2 * torch.eye(len(image), dtype=image.dtype) - 1) * (logits + out.bias)).sum() / len(image)
    target = torch.arange(len(image))
    losses = [cross_entropy(x, target, label_smoothing=kind.label_smoothing) for x in (logits, logits.T)]
    return (losses[0] + losses[1]) / 2


def pairs(
    kind: Any, n: int = B, width: int = D, scale: float = 9.0, dtype: torch.dtype = torch.float64, seed: int = 2
) -> Embeddings:
    """`n` pairs that are somewhat alike."""
    dice = torch.Generator().manual_seed(seed)
    image, noise = normalize(torch.randn(2, n, width, generator=dice, dtype=torch.float64), dim=-1)
    text = normalize(image + noise, dim=-1)
    bias = None if kind.bias_init is None else torch.tensor(-2.0, dtype=dtype)
    return Embeddings(image.to(dtype), text.to(dtype), torch.tensor(scale, dtype=dtype), bias)


def found(loss: Any, out: Embeddings) -> list[Tensor]:
    """The loss and its gradients at image, text, scale and bias."""
    leaves = [None if x is None else x.clone().requires_grad_() for x in out]
    value = loss(Embeddings(*leaves))
    value.backward()
    return [value.detach(), *(x.grad for x in leaves if x is not None)]


def tiled(kind: Any, out: Embeddings) -> list[Tensor]:
    return found(lambda leaves: kind(leaves, ANY), out)


def twin(kind: Any, out: Embeddings) -> list[Tensor]:
    return found(lambda leaves: plain(kind, leaves), out)


def assert_same(have: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-10) -> None:
    assert len(have) == len(wanted)
    for x, y in zip(have, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def error(have: Tensor, true: Tensor) -> float:
    """Of a gradient in float32, relative to that in float64."""
    return ((have - true).norm() / true.norm()).item()


def _all_cases(rank: int, world: int) -> list[list[Tensor]]:
    results = []
    for _tiles.SIDE, _tiles.KEPT_MB in TILES:
        for kind, scale in product(KINDS, SCALES):
            out = pairs(kind, scale=scale)
            mine = slice(rank * B // world, (rank + 1) * B // world)
            results.append(tiled(kind, out._replace(image=out.pair()[0][mine], text=out.pair()[1][mine])))
    return results


@pytest.mark.parametrize("world", [1, 2, 4])
def test_tiles_of_any_size_on_any_number_of_ranks_equal_one_matrix(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIDE", "KEPT_MB"):  # so that they are what they were when this process has gone through the cases
        monkeypatch.setattr(_tiles, name, getattr(_tiles, name))
    ranks = [_all_cases(0, 1)] if world == 1 else two_ranks.run(_all_cases, world, world=world)
    wanted = [twin(kind, pairs(kind, scale=scale)) for kind, scale in product(KINDS, SCALES)]
    for i, parts in enumerate(zip(*ranks, strict=True)):
        losses, images, texts, *scalars = zip(*parts, strict=True)
        means = [torch.stack(x).mean(0) for x in (losses, *scalars)]  # what DDP makes of the scalars' gradients
        joined = [torch.cat(x) / world for x in (images, texts)]
        assert_same([means[0], *joined, *means[1:]], wanted[i % len(wanted)])


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_asked_for_gets_a_gradient(kind: Any) -> None:
    out, true = pairs(kind), twin(kind, pairs(kind))
    for i, x in enumerate(out):
        if x is not None:
            leaf = x.clone().requires_grad_()
            kind(Embeddings(*(leaf if k == i else y for k, y in enumerate(out))), ANY).backward()
            assert_same([leaf.grad], [true[1 + i]])
    loss = kind(out, ANY)
    assert not loss.requires_grad
    with torch.no_grad():
        assert torch.equal(kind(out._replace(image=out.pair()[0].requires_grad_()), ANY), loss)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weighed_loss_gone_through_twice_gives_its_weighed_gradient_twice(kind: Any) -> None:
    out, true = pairs(kind), twin(kind, pairs(kind))
    leaf = out.pair()[0].clone().requires_grad_()
    loss = 3 * kind(out._replace(image=leaf), ANY)
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same([leaf.grad], [6 * true[1]])


@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
def test_float32_is_as_close_to_float64_as_one_matrix_is(
    kind: Any, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tiles, "SIDE", 100)
    errors = []
    for seed in range(8):
        out = pairs(kind, 256, 32, scale, torch.float32, seed)
        true = twin(kind, Embeddings(*(None if x is None else x.double() for x in out)))  # type: ignore[arg-type]
        both = zip(tiled(kind, out), twin(kind, out), true, strict=True)
        errors.append([(error(ours, exact), error(dense, exact)) for ours, dense, exact in both])
    for ours, dense in torch.tensor(errors).mean(0):
        assert ours < max(1.1 * dense, 2e-7)


def test_a_loss_of_1e_7_keeps_its_digits_in_float32() -> None:
    kind = KINDS[0]
    rows = torch.eye(64)
    out = Embeddings(rows, rows, torch.tensor(20.0), None)
    have, true = tiled(kind, out), twin(kind, Embeddings(*(x.double() for x in out[:3]), None))
    assert 1e-7 < true[0] < 2e-7
    assert all(error(x, y) < 1e-5 for x, y in zip(have, true, strict=True))
    assert error(twin(kind, out)[1], true[1]) > 0.01, "one matrix loses them"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_far_beyond_what_exp_can_take_give_finite_results(kind: Any) -> None:
    out = pairs(kind, scale=1e5, dtype=torch.float32)
    have, true = tiled(kind, out), twin(kind, pairs(kind, scale=1e5))
    assert all(bool(x.isfinite().all()) for x in have)
    assert_same([x.double() for x in have], true, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pair_alone_equals_its_plain_twin(kind: Any) -> None:
    assert_same(tiled(kind, pairs(kind, 1)), twin(kind, pairs(kind, 1)))
