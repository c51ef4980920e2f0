"""A step in chunks: what is embedded when, what it holds, and how many pairs fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipkit import distributed, step
from clipkit.errors import UserError
from clipkit.objectives import softmax
from clipkit.step import fit
from clipkit.types import Batch, Embeddings

WIDTH = 64


class Towers(nn.Module):
    """Pictures through wide layers, so that graphs weigh more than embeddings; counts the pairs of each forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(4)]
        self.see = nn.Sequential(nn.Flatten(), nn.Linear(48, WIDTH), *layers, nn.Linear(WIDTH, 8))
        self.read = nn.Sequential(nn.Embedding(50, WIDTH), nn.Linear(WIDTH, 8))
        self.scale = nn.Parameter(torch.tensor([2.0]))
        self.seen: list[int] = []

    def forward(self, image: Tensor, text: Tensor) -> Embeddings:
        self.seen.append(len(image))
        seen, read = self.see(image.to(self.scale.dtype) / 255), self.read(text).mean(1)
        return Embeddings(normalize(seen, dim=-1), normalize(read, dim=-1), self.scale.exp().sum(), None)


def batch(pairs: int) -> Batch:
    dice = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (pairs, 3, 4, 4), generator=dice, dtype=torch.uint8)
    text = torch.randint(0, 50, (pairs, 5), generator=dice)
    return Batch(pixels, text, torch.arange(pairs), [str(i) for i in range(pairs)])


def most_held(pairs: int, chunk: int | None) -> int:
    """Bytes that a step holds at most, with the loss in one row so that only the model counts."""
    model, whole = Towers(), batch(pairs)
    with fit._Peak(model) as peak:
        step.gradients(model, lambda out, _: (out.pair()[0] * out.pair()[1]).sum() * out.scale, whole, chunk)
    return peak.most


@pytest.mark.parametrize(("chunk", "on_host", "seen"), [
    (None, False, [20]), (20, False, [20]), (99, True, [20]),
    (7, False, [6, 7, 7, 6, 7]), (7, True, [6, 7, 7, 6, 7, 7]), (10, False, [10, 10, 10]),
])  # fmt: skip
def test_chunks_are_even_and_the_last_one_is_embedded_once(chunk: int | None, on_host: bool, seen: list[int]) -> None:
    model = Towers()
    step.gradients(model, softmax.Setting(), batch(20), chunk, on_host=on_host)
    assert model.seen == seen


def test_only_the_pairs_about_to_be_embedded_are_placed_and_the_objective_sees_the_batch_as_it_came() -> None:
    whole, placed, met = batch(20), [], []

    def place(part: Batch) -> Batch:
        placed.append(len(part))
        return part

    def objective(out: Embeddings, seen: Batch) -> Tensor:
        met.append(seen)
        return softmax.Setting()(out, seen)

    model = Towers()
    step.gradients(model, objective, whole, 7, place)
    assert placed == model.seen
    step.gradients(model, objective, whole, None, place)
    assert placed == model.seen and met[0] is whole and met[1] is whole


def test_a_frozen_tower_is_left_out_and_the_rest_is_the_same() -> None:
    found = []
    for chunk in (None, 7):
        model = Towers().double()
        model.see.requires_grad_(False)
        step.gradients(model, softmax.Setting(), batch(20), chunk)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == {"scale", "read.0.weight", "read.1.weight", "read.1.bias"}
    for name, x in found[0].items():
        torch.testing.assert_close(found[1][name], x, rtol=1e-10, atol=1e-10)


def test_what_a_step_holds_does_not_grow_with_the_batch() -> None:
    few, many, whole = most_held(256, 128), most_held(2048, 128), most_held(2048, None)
    beside = 6 * 2048 * 8 * 4  # both sides' embeddings and what the loss makes of them, with gradients
    assert many < 1.05 * few + beside and whole > 8 * few


def test_the_largest_chunk_fits_into_what_is_free_and_twice_it_would_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = 2_500_000
    monkeypatch.setattr(fit, "_free", lambda device: free)
    model, before = Towers(), torch.get_rng_state()
    chunk = step.auto_chunk(model, batch, 2048)
    assert chunk is not None and most_held(2048, chunk) < free < most_held(2048, 2 * chunk)
    assert "chunk: auto takes " in capsys.readouterr().err
    assert all(p.grad is None for p in model.parameters()) and torch.equal(before, torch.get_rng_state())
    less = step.auto_chunk(model, batch, 2048, reserve=free // 4)
    assert less is not None and 0.5 * chunk < less < 0.8 * chunk, "what comes later is left"
    assert step.auto_chunk(model, batch, 2048, reserve=10 * free) == 1


@pytest.mark.parametrize("pairs", [1, 2, 3, 500])
def test_auto_takes_the_whole_batch_where_it_fits(pairs: int) -> None:
    assert step.auto_chunk(Towers(), batch, pairs) is None


def test_the_rank_with_the_least_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "gather_uneven", lambda mine: torch.cat([mine, torch.tensor([30.0])]))
    assert step.auto_chunk(Towers(), batch, 100) == 25, "100 in four even chunks of at most 30"


@pytest.mark.parametrize(("limit", "found"), [(64, 64), (20, 16), (1, 1), (0, None)])
def test_a_chunk_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch, limit: int, found: int | None) -> None:
    monkeypatch.setattr(fit, "_fits", lambda model, sample, chunk, reserve, device: chunk <= limit)
    arguments: Any = (Towers(), batch, 64, 0, torch.device("cpu"))
    if found:
        assert fit._tried(*arguments) == found
    else:
        with pytest.raises(UserError, match="not even one pair fits"):
            fit._tried(*arguments)


def test_a_job_may_take_what_the_tightest_of_its_control_groups_leaves(tmp_path: Path) -> None:
    mine, groups = tmp_path / "cgroup", tmp_path / "groups"
    mine.write_text("1:cpu:/x\n0::/job/step\n")
    for folder, limit, used, cached in (("job", "1000", 700, 300), ("job/step", "max", 700, 300), ("", "5000", 900, 0)):
        here = groups / folder
        here.mkdir(parents=True, exist_ok=True)
        (here / "memory.max").write_text(f"{limit}\n")
        (here / "memory.current").write_text(f"{used}\n")
        (here / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert fit._left_to_job(groups, mine) == 600
    assert fit._left_to_job(groups, tmp_path / "none") == 4100
    assert fit._left_to_job(tmp_path / "none", mine) == float("inf")
