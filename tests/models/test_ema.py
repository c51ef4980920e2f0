"""The average of the weights by its formula; over shards of weights it is tested in tests/optim/test_sharded.py."""

import torch
from torch import nn

from clipkit.models import Ema


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.tied = self.line
        self.scale = nn.Parameter(torch.tensor([2.0]))
        self.double()


def turn(net: Net, step: int) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step), dtype=p.dtype))
    net.norm(torch.full((4, 2), float(step), dtype=torch.float64))


def test_an_average_is_the_sum_that_its_decay_says() -> None:
    net = Net()
    ema, seen = Ema(net, 0.7), [{name: x.clone() for name, x in net.state_dict().items()}]
    for step in range(4):
        turn(net, step)
        ema.update()
        seen.append({name: x.clone() for name, x in net.state_dict().items()})
    assert ema.average.keys() == net.state_dict().keys()
    for name, kept in ema.average.items():
        if name.endswith("num_batches_tracked"):
            assert kept == 4
            continue
        wanted = 0.7**4 * seen[0][name] + sum(0.3 * 0.7 ** (4 - i) * seen[i][name] for i in range(1, 5))
        torch.testing.assert_close(kept, wanted, rtol=1e-12, atol=1e-12)


def test_two_swaps_restore_weights_and_averages_also_of_tied_weights() -> None:
    net = Net()
    ema = Ema(net, 0.5)
    turn(net, 0)
    ema.update()
    weights = {name: x.clone() for name, x in net.state_dict().items()}
    averages = {name: x.clone() for name, x in ema.average.items()}
    assert not torch.equal(weights["line.weight"], averages["line.weight"])
    for now, kept in ((averages, weights), (weights, averages)):
        ema.swap()
        for name, x in net.state_dict().items():
            assert torch.equal(x, now[name]) and torch.equal(ema.average[name], kept[name]), name


def test_loaded_averages_go_on_as_the_saved_ones() -> None:
    net = Net()
    ema, again = Ema(net, 0.5), Ema(net, 0.5)
    turn(net, 0)
    ema.update()
    again.load({name: x.clone() for name, x in ema.average.items()})
    turn(net, 1)
    for one in (ema, again):
        one.update()
    for name, x in ema.average.items():
        assert torch.equal(again.average[name], x)


def test_a_step_that_was_skipped_leaves_the_average_bitwise_alone() -> None:
    net = Net()
    ema = Ema(net, 0.7)
    turn(net, 0)
    ema.update()
    before = {name: x.clone() for name, x in ema.average.items()}
    turn(net, 1)
    net.norm.load_state_dict({name: before[f"norm.{name}"] for name in net.norm.state_dict()})
    ema.update(torch.tensor(float("nan")).isfinite())
    assert all(torch.equal(x, before[name]) for name, x in ema.average.items())
    ema.update(torch.tensor(1.0).isfinite())
    torch.testing.assert_close(ema.average["scale"], 0.7 * before["scale"] + 0.3 * net.scale.detach())
