"""eval/bench/step.py at a size that says nothing about speed: both sides make the same losses."""

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "eval" / "bench"


@pytest.fixture(scope="module")
def step():
    sys.path.insert(0, str(BENCH))  # as Python does for the script
    yield importlib.import_module("step")
    sys.path.remove(str(BENCH))


def test_both_sides_make_the_same_losses_of_pairs_made_up_or_read(step, shards):
    sizes = step.Sizes(width=64, layers=1, side=32, context=24)
    for data in (None, str(shards)):
        found = step.measure(sizes, data, 6, 4)
        assert found["apart"] < 1e-5 and 4 < found["tokens"] < 24
        assert min(*found["clock_s"].values(), *found["cpu_s"].values()) > 0


def test_the_bars_are_the_losses_and_the_pairs_per_second(step):
    found = {"apart": 1e-6, "tokens": 9.0, "clock_s": {"clipkit": 1.0, "open_clip": 2.0}}
    fast = {**found, "cpu_s": {"clipkit": 1.0, "open_clip": 1.9}}
    told = step.verdict(fast, 128)
    assert told["ok"] and told["faster"] == {"clock_s": 2.0, "cpu_s": 1.9}
    assert told["pairs_per_s"] == {"clipkit": 128.0, "open_clip": 64.0}
    assert not step.verdict({**fast, "apart": 2e-5}, 128)["ok"]
    assert not step.verdict({**fast, "cpu_s": {"clipkit": 1.0, "open_clip": 1.7}}, 128)["ok"]
