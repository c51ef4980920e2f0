"""The parts of eval/bench/chunk.py that need no long run."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from clipkit import step
from clipkit.objectives import softmax

BENCH = Path(__file__).parents[2] / "eval" / "bench"


@pytest.fixture(scope="module")
def chunk():
    sys.path.insert(0, str(BENCH))  # as Python does for the script
    yield importlib.import_module("chunk")
    sys.path.remove(str(BENCH))


def test_a_bar_that_is_missed_fails(chunk):
    seconds = {"plain": [1.0, 2.0, 9.0], "chunks": [2.4, 2.0, 9.0], "open_clip": [8.0, 8.0, 8.0]}
    memory = [chunk.Held(1, 100.0, 1.0), chunk.Held(4, 90.0, 4.0), chunk.Held(16, 110.0, 16.0)]
    result = chunk.verdict({"small": seconds, "wide": seconds}, memory)
    assert result["ok"] and result["ratios"]["wide"] == {"plain": 1.0, "chunks": 1.2, "open_clip": 4.0}
    assert json.dumps(result) and len(chunk.table(result).splitlines()) == 11
    assert not chunk.verdict({"small": seconds, "wide": {**seconds, "chunks": [2.5]}}, memory)["ok"]
    assert not chunk.verdict({"small": seconds}, [*memory, chunk.Held(32, 111.0, 32.0)])["ok"]


def test_the_three_ways_have_the_same_gradient_but_for_the_peer_s_scale(chunk):
    found = []
    for way in (None, 2, "peer"):
        net, batch = chunk.model(chunk.HELD), chunk.batch_of(6, chunk.HELD)
        if way == "peer":
            chunk.accumulated(net, softmax.Setting(), batch, 2)
        else:
            step.gradients(net, softmax.Setting(), batch, way)
        found.append({name: p.grad for name, p in net.named_parameters()})
    plain, ours, peer = found
    for name, wanted in plain.items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-3, atol=1e-5, msg=name)
        torch.testing.assert_close(peer[name], wanted * (3 if "scale" in name else 1), rtol=1e-3, atol=1e-5, msg=name)


def test_every_way_is_timed_without_its_first_turn(chunk):
    seconds = chunk.timed("small", 4, 2, 1)
    assert {len(each) for each in seconds.values()} == {1} and all(each[0] > 0 for each in seconds.values())


def test_memory_is_of_this_process_and_its_most_stays(chunk):
    before = chunk._resident("VmRSS")
    block = torch.ones(400 * chunk.MB, dtype=torch.uint8)
    most = chunk._resident("VmHWM")
    assert most >= chunk._resident("VmRSS") >= before + 200 * chunk.MB
    del block
    assert chunk._resident("VmRSS") < before + 200 * chunk.MB <= chunk._resident("VmHWM")
