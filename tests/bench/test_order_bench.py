"""The parts of eval/bench/order.py and memory.py that need no long run."""

import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.samples import toy_tokenizer

BENCH = Path(__file__).parents[2] / "eval" / "bench"


@pytest.fixture(scope="module")
def order():
    sys.path.insert(0, str(BENCH))  # as Python does for the script
    yield importlib.import_module("order")
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def memory():
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("memory")
    sys.path.remove(str(BENCH))


# order.py


def test_uneven_shards_add_up(order):
    counts = order.uneven(1_000_003, 1000)
    assert counts.sum() == 1_000_003 and len(counts) == 1000
    assert counts.min() >= 899 and counts.max() <= 1101 and len(np.unique(counts)) > 50
    assert order.uneven(5, 1).tolist() == [5]


@pytest.mark.parametrize("case", ["1 lane", "8 lanes", "3 sources"])
def test_what_is_timed_finds_every_sample_once(order, case):
    locate = order.locator(400, 7, *order.CASES[case])
    which, shard, row = locate(np.arange(400))
    assert len({*zip(which.tolist(), shard.tolist(), row.tolist(), strict=True)}) == 400
    assert set(which.tolist()) == set(range(len(order.CASES[case][1])))
    measured = order.measure(case, 400, 7, 16, 2)
    assert measured.case == case and measured.first_ms > 0 < measured.warm_ms and measured.memory_mb >= 0


def test_the_first_call_of_an_epoch_is_new_to_every_source(order):
    for weights in ((1.0,), (3.0, 2.0, 1.0), order.CASES["3 sources"][1]):
        seen = {k: set() for k in range(len(weights))}
        for epoch in range(4):
            used = order.mixture(weights).used(order.position(1000, weights, epoch))
            for k, n in enumerate(used):
                assert n // 1000 not in seen[k], "an epoch that is still kept would be no first call"
                seen[k].add(n // 1000)


def test_a_bar_that_is_missed_fails(order):
    rows = [order.Row("a", 90.0, 49.9, 199.9), order.Row("b", 90.0, 1.0, 1.0)]
    assert order.verdict(rows)["ok"] and json.loads(json.dumps(order.verdict(rows)))["cases"][0]["warm_ms"] == 49.9
    assert not order.verdict([*rows, order.Row("c", 1.0, 50.0, 1.0)])["ok"]
    assert not order.verdict([*rows, order.Row("d", 1.0, 1.0, 200.0)])["ok"]
    assert len({len(line) for line in order.table(rows).splitlines()}) == 1


# memory.py

MB = 1 << 20


def looks(memory, *rss):
    return [memory.Look(10 * (i + 1), "main", mb * MB, mb * MB // 2, mb * MB // 4) for i, mb in enumerate(rss)]


@pytest.mark.parametrize(
    ("rss", "grown", "ok"),
    [((100, 100, 100), 1.0, True), ((50, 100, 105, 101), 1.05, True), ((100, 100, 106, 100), 1.06, False),
     ((300, 100, 100), 1.0, True), ((100, 90, 110), 110 / 90, False)],
)  # fmt: skip
def test_growth_is_counted_from_the_end_of_the_first_epoch(memory, rss, grown, ok):
    result = memory.verdict(looks(memory, *rss), 20)
    assert result["ok"] is ok and result["processes"]["main"]["grown"] == round(grown, 4)
    facts = result["processes"]["main"]["rss"]
    assert facts == {"first": rss[1], "most": max(rss[1:]), "end": rss[-1]}


def test_one_process_that_grows_fails_them_all(memory):
    worker = [memory.Look(step, "worker 0", mb * MB, MB, MB) for step, mb in ((20, 10), (30, 20))]
    result = memory.verdict([*looks(memory, 100, 100, 100), *worker], 20)
    assert not result["ok"] and result["processes"]["main"]["ok"] and json.dumps(result)
    assert len(memory.table([*looks(memory, 100, 100, 100), *worker], [20, 30]).splitlines()) == 5


def test_a_look_at_this_process_is_of_this_process(memory):
    held = np.ones(64 * MB, np.uint8)
    [one] = memory.look(7, {"me": os.getpid()})
    assert (one.step, one.process) == (7, "me") and one.rss >= one.pss >= one.uss >= len(held)


def test_the_shards_of_the_bench_are_whole_and_are_read_by_a_worker(memory, tmp_path):
    from clipkit.shards import Shards

    memory.make_shards(tmp_path, 43, 16, shards=3)
    source = Shards(str(tmp_path), ("image", "txt"))
    assert len(source) == 43 and source.counts.tolist() == [14, 14, 15] and not source.lost
    found = memory.watch(tmp_path, 80, 40, 10, 1, 8, toy_tokenizer())
    assert [(one.step, one.process) for one in found] == [(4, "main"), (4, "worker 0"), (8, "main"), (8, "worker 0")]
    assert all(one.rss > 10 * MB for one in found)
