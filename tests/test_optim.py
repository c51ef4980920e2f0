"""The rate by hand, decay where it belongs, and an optimizer that comes back as it was."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from clipkit import checkpoint, optim
from clipkit.optim import Settings, lr_at

STEPS = 110


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (35, 0.2 + 0.8 * (2 + math.sqrt(2)) / 4),
        (60, 0.6),
        (110, 0.2),
        (999, 0.2),
    ],
)
def test_a_cosine_by_hand(step: int, lr: float) -> None:
    assert lr_at(Settings(lr=1.0, lr_end=0.2, warmup=10), step, STEPS) == pytest.approx(lr)


def test_a_cosine_is_open_clips() -> None:
    """`cosine_lr` of open_clip_train/scheduler.py, which knows no lr_end."""
    cfg = Settings(lr=3e-4, warmup=7)
    for step in range(STEPS):
        e, es = step - 7, STEPS - 7
        theirs = 3e-4 * (step + 1) / 7 if step < 7 else 0.5 * (1 + math.cos(math.pi * e / es)) * 3e-4
        assert lr_at(cfg, step, STEPS) == pytest.approx(theirs)


def test_a_constant_rate_stays_after_its_warmup() -> None:
    cfg = Settings(lr=2.0, warmup=4, schedule="constant")
    assert [lr_at(cfg, step, 5) for step in (0, 3, 4, 99)] == [0.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_a_run_shorter_than_its_warmup_or_without_one_has_a_rate(steps: int) -> None:
    assert lr_at(Settings(lr=1.0, warmup=10), 2, steps) == pytest.approx(0.3)
    assert lr_at(Settings(lr=1.0, warmup=0), 0, steps) == 1.0
    assert lr_at(Settings(lr=1.0, warmup=10), 10, steps) == 1.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.scale, self.frozen = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.tied = self.line.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.line(x)) * self.scale


CFG = Settings(lr=0.01, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3)


def test_only_weights_of_more_than_one_dimension_decay() -> None:
    net = Net()
    decayed, spared = optim.build(CFG, net).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 3)] and decayed["weight_decay"] == 0.3
    assert [p.shape for p in spared["params"]] == [(), (4,), (4,), (4,)] and spared["weight_decay"] == 0.0
    assert decayed["betas"] == (0.8, 0.9) and decayed["eps"] == 1e-3 and decayed["lr"] == spared["lr"] == 0.01


def steps(net: Net, optimizer: torch.optim.Optimizer, first: int, end: int) -> None:
    for step in range(first, end):
        optim.set_lr(optimizer, lr_at(CFG, step, 10))
        net(torch.full((2, 3), float(step + 1))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_steps_equal_adamw_with_the_textbook_rule() -> None:
    """arXiv 1711.05101, algorithm 2, in float64."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    p, m, v = net.weight.detach().clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    optimizer = optim.build(CFG, net)
    for t in range(1, 6):
        net(torch.full((1, 3), float(t), dtype=torch.float64)).square().sum().backward()
        g = net.weight.grad
        assert g is not None
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        p = p * (1 - 0.01 * 0.3) - 0.01 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(net.weight.detach(), p, rtol=1e-12, atol=1e-12)


def test_a_run_resumed_from_the_saved_state_equals_a_straight_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    straight, half = Net(), Net()
    half.load_state_dict(straight.state_dict())
    steps(straight, optim.build(CFG, straight), 0, 6)

    first = optim.build(CFG, half)
    steps(half, first, 0, 3)
    place = checkpoint.save(tmp_path, 3, {"optim.safetensors": optim.state(first, half)}, keep=1)
    kept = checkpoint.tensors(place / "optim.safetensors")
    again = Net()
    again.load_state_dict(half.state_dict())
    second = optim.build(CFG, again)
    optim.load_state(second, again, kept)
    steps(again, second, 3, 6)
    for name, wanted in straight.state_dict().items():
        assert torch.equal(again.state_dict()[name], wanted), name


def test_the_state_is_named_by_what_and_whose_it_is() -> None:
    net = Net()
    optimizer = optim.build(CFG, net)
    assert optim.state(optimizer, net) == {}
    steps(net, optimizer, 0, 1)
    names = {f"{what}/{name}" for what in ("step", "exp_avg", "exp_avg_sq") for name, _ in net.named_parameters()}
    assert optim.state(optimizer, net).keys() == {name for name in names if not name.endswith("frozen")}
