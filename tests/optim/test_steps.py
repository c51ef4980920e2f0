"""Steps equal the textbook's and torch's, broken gradients change nothing, and what is saved goes on as before."""

from pathlib import Path

import pytest
import timm.optim
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clipkit import optim
from clipkit.errors import UserError
from clipkit.optim.build import OWN, REFUSED
from tests.optim.nets import KNOWN, Net, batch, steps

TORCH = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "SGD")
NEED_CUDA = ("bnb", "fused")
NAMES = [n for n in timm.optim.list_optimizers() if n not in REFUSED and not n.startswith(NEED_CUDA)]
CLASSES = {timm.optim.get_optimizer_info(n).opt_class: n for n in NAMES}  # one name of each class
EVERY = [*OWN, *CLASSES.values(), *TORCH]


def made(name: str, net: nn.Module) -> torch.optim.Optimizer:
    return optim.build(optim.Settings(name=name, **KNOWN), net)


def everything(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {k: x.clone() for k, x in {**net.state_dict(), **optim.state(optimizer, net)}.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], name: str) -> None:
    assert one.keys() == other.keys(), name
    for key in one:
        assert one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]), f"{name}: {key}"


def test_steps_equal_adamw_with_the_textbook_rule() -> None:
    """arXiv 1711.05101, algorithm 2, in float64."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    p, m, v = net.weight.detach().clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    optimizer = optim.build(optim.Settings(lr=0.01, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3), net)
    for t in range(1, 6):
        net(torch.full((1, 3), float(t), dtype=torch.float64)).square().sum().backward()
        g = net.weight.grad
        assert g is not None
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        p = p * (1 - 0.01 * 0.3) - 0.01 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-3)
        optim.update(optimizer, g.norm())
        optimizer.zero_grad()
        torch.testing.assert_close(net.weight.detach(), p, rtol=1e-12, atol=1e-12)


def test_muon_equals_torchs_beside_adamw() -> None:
    ours, theirs = Net(), Net()
    cfg = optim.Settings(name="muon", options={"momentum": 0.9}, **KNOWN)
    optimizer = optim.build(cfg, ours)
    of = dict(theirs.named_parameters())
    hidden = [p for name, p in of.items() if "resblocks" in name and p.ndim == 2]
    flat = [p for name, p in of.items() if p.ndim == 1]
    rest = [of["visual.proj"], of["visual.conv1.weight"], of["visual.positional_embedding"]]
    peers = [
        torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": rest, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}],
            lr=0.01, betas=(0.9, 0.98), eps=1e-6, fused=True,
        ),
    ]  # fmt: skip
    for step in range(4):
        for net in (ours, theirs):
            net.zero_grad()
            net(batch(step)).square().mean().backward()
        optim.update(optimizer, torch.tensor(1.0))
        for peer in peers:
            peer.step()
    assert_same(ours.state_dict(), theirs.state_dict(), "muon")


def test_lamb_is_timms_without_a_clipping_of_its_own() -> None:
    ours, theirs = Net(), Net()
    optimizer = optim.build(optim.Settings(name="lamb", **KNOWN), ours)
    plain, flat = optim.build(optim.Settings(**KNOWN), theirs).param_groups
    peer = timm.optim.Lamb(
        [{"params": plain["params"]}, {"params": flat["params"], "weight_decay": 0.0}],
        lr=0.01, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6, max_grad_norm=None,
    )  # fmt: skip
    for step in range(3):
        for net in (ours, theirs):
            net.zero_grad()
            (100 * net(batch(step)).square().mean()).backward()  # a norm above 1, at which timm's default would clip
        optim.update(optimizer, torch.tensor(1.0))
        peer.step()
    assert_same(ours.state_dict(), theirs.state_dict(), "lamb")


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_not_finite_changes_no_bit(dtype: torch.dtype, broken: float) -> None:
    for name in (*OWN, "adan", "Adafactor"):
        net = Net().to(dtype)
        optimizer = made(name, net)
        steps(net, optimizer, 0, 2)
        before = everything(net, optimizer)
        optim.update(optimizer, torch.tensor(broken))
        assert_same(everything(net, optimizer), before, name)
        optim.update(optimizer, torch.tensor(1.0))
        assert not torch.equal(net.visual.proj, before["visual.proj"]), name


def test_a_run_that_skips_a_step_equals_one_that_never_had_it() -> None:
    for name in OWN:
        with_it, without = Net(), Net()
        first, second = made(name, with_it), made(name, without)
        steps(with_it, first, 0, 5, skipped=0)
        steps(without, second, 1, 5)
        assert_same(everything(with_it, first), everything(without, second), name)


def test_steps_saved_in_between_equal_straight_ones_for_every_optimizer(tmp_path: Path) -> None:
    for name in EVERY:
        half_way, end = (3, 6) if name in OWN else (2, 3)
        straight, half, again = Net(), Net(), Net()
        whole = made(name, straight)
        steps(straight, whole, 0, end)

        first = made(name, half)
        steps(half, first, 0, half_way)
        save_file(optim.state(first, half), tmp_path / "optim.safetensors")
        again.load_state_dict(half.state_dict())
        second = made(name, again)
        optim.load_state(second, again, load_file(tmp_path / "optim.safetensors"))
        steps(again, second, half_way, end)
        assert_same(everything(again, second), everything(straight, whole), name)


def test_the_state_is_named_by_what_and_whose_it_is() -> None:
    net = Net()
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    optimizer = made("adamw", net)
    steps(net, optimizer, 0, 1)
    wanted = {f"{what}/{name}" for what in ("step", "exp_avg", "exp_avg_sq") for name in trained}
    assert optim.state(optimizer, net).keys() == wanted
    for name, count in (("adamp", "step:int"), ("lamb", "group.step"), ("adan", "group.step:int")):
        optimizer = made(name, net)
        steps(net, optimizer, 0, 1)
        assert {f"{count}/{owner}" for owner in trained} <= optim.state(optimizer, net).keys()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "adamv"}, "neither timm nor torch.optim has it; did you mean adam"),
        ({"name": "??"}, "give one of: adabelief, "),
        ({"name": "LBFGS"}, "cannot be used: it evaluates a batch more than once; try adamw, lamb or muon"),
        ({"name": "bnbadam"}, "optim.name=bnbadam, optim.options={}: CUDA required"),
        ({"options": {"lr": 1.0}}, "optim.options.lr: has a setting of its own, optim.lr"),
        ({"name": "muon", "options": {"momentun": 1.0}}, "unknown to muon; did you mean 'momentum'?"),
        ({"name": "lion", "options": {"zzz": 1}}, "unknown to lion; lion takes betas, caution"),
        ({"name": "lion", "betas": (0.9, 0.99)}, "optim.betas: is for adamw, lamb, muon; for lion set optim.options"),
        ({"name": "sgd", "options": {"momentum": -1.0}}, "optim.options={'momentum': -1.0}: Invalid momentum value"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_way_out(settings: dict[str, object], text: str) -> None:
    with pytest.raises(UserError) as refused:
        optim.build(optim.Settings(**settings), Net())  # type: ignore[arg-type]
    assert text in str(refused.value)


def test_options_reach_the_optimizer() -> None:
    built = optim.build(optim.Settings(name="lion", options={"betas": [0.9, 0.99]}), Net())
    assert built.param_groups[0]["betas"] == [0.9, 0.99]
    assert optim.build(optim.Settings(options={"amsgrad": True}), Net()).param_groups[0]["amsgrad"] is True
