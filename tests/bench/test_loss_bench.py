"""The parts of eval/bench/loss.py that need no long run."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "eval" / "bench"


@pytest.fixture(scope="module")
def loss():
    sys.path.insert(0, str(BENCH))  # as Python does for the script
    yield importlib.import_module("loss")
    sys.path.remove(str(BENCH))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_both_sides_find_the_same_loss_each_time(loss, kind):
    ours, theirs = (loss.passes(side, kind, 16) for side in ("clipkit", "open_clip"))
    assert ours() == pytest.approx(theirs(), rel=1e-5)
    assert ours() == pytest.approx(theirs(), rel=1e-5)


def test_each_bar_is_held_at_its_own_batch_alone(loss):
    def ok(batch, seconds=0.5, mb=10.0, found=2.0, kind="softmax"):
        return loss.Row(kind, batch, loss.Cost(seconds, mb, found), loss.Cost(1.0, 400.0, 2.0)).ok

    assert ok(8192) and ok(8192, seconds=0.55) and not ok(8192, seconds=0.56)
    assert ok(8192, seconds=0.65, kind="sigmoid") and not ok(8192, seconds=0.66, kind="sigmoid")
    assert ok(16384, mb=20.0) and not ok(16384, mb=21.0)
    assert ok(4096, seconds=2.0, mb=900.0) and not ok(4096, found=2.1), "another loss is no measurement of this one"
    alone = [loss.Row("sigmoid", 65536, loss.Cost(1.0, mb, 2.0), None) for mb in (1999.0, 2000.0)]
    assert [row.ok for row in alone] == [True, False]


def test_a_missed_bar_is_told_in_the_verdict_and_the_table_shows_the_ratios(loss):
    rows = [
        loss.Row("softmax", 8192, loss.Cost(3.0, 100.0, 2.0), loss.Cost(6.0, 1000.0, 2.0)),
        loss.Row("softmax", 65536, loss.Cost(90.0, 2100.0, 2.0), None),
    ]
    told = json.loads(json.dumps(loss.verdict(rows)))
    assert [case["ok"] for case in told["cases"]] == [True, False] and not told["ok"]
    assert told["cases"][0]["time"] == 0.5 and told["cases"][0]["memory"] == 0.1
    lines = loss.table(rows).splitlines()
    assert lines[1].split() == ["softmax", "8192", "3.000", "6.000", "0.50", "100", "1000", "0.100"]
    assert lines[2].split() == ["softmax", "65536", "90.000", "2100"]


def test_a_side_in_its_own_process_answers_with_what_a_turn_cost(loss):
    row = loss.measure("sigmoid", 64, 2, 1, 0.0, ("clipkit",))
    assert row.open_clip is None and row.clipkit.seconds > 0 and row.clipkit.mb >= 0
    assert row.clipkit.loss == pytest.approx(loss.passes("clipkit", "sigmoid", 64)())
