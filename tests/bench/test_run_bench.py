"""The parts of eval/bench/run.py that need no training."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "eval" / "bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))  # as Python does for the script
    yield importlib.import_module("run")
    sys.path.remove(str(BENCH))


def rows_of(bench):
    """Three seeds at context 77 and one at 32: clipkit twice as fast, with R@5 a little lower."""
    rows = []
    for context, seed in ((77, 0), (77, 1), (77, 2), (32, 0)):
        recall = 0.10 + 0.02 * seed
        rows.append(bench.Row("open_clip", context, seed, 1280, 20.0, 64.0, 900.0, recall, recall))
        rows.append(bench.Row("clipkit", context, seed, 1280, 10.0, 128.0, 600.0, recall - 0.01, recall - 0.01))
    return rows


def test_the_verdict_takes_medians_and_allows_for_seed_noise(bench):
    rows = rows_of(bench)
    result = bench.verdict(rows)
    assert result["ok"] and result["ratio"] == {77: 2.0, 32: 2.0} and result["seed_noise"] == pytest.approx(0.02)
    assert json.loads(json.dumps(result))["seeds"] == 3
    assert len({len(line) for line in bench.table(rows).splitlines()[1:]}) == 1


def test_three_trainings_of_the_peer_that_happen_to_agree_are_not_all_the_noise(bench):
    rows = [dataclasses.replace(r, recall5=0.13) if r.trainer == "open_clip" else r for r in rows_of(bench)]
    assert bench.verdict(rows)["seed_noise"] == pytest.approx(0.02 / 2**0.5)


@pytest.mark.parametrize(
    "change", [{"pairs_per_s": 100.0}, {"peak_mb": 900.0}, {"recall5": 0.01, "plain_recall5": 0.01}, {"recall5": 0.3}]
)
def test_the_verdict_is_not_ok_when_clipkit_is(bench, change):
    rows = [dataclasses.replace(r, **change) if r.trainer == "clipkit" else r for r in rows_of(bench)]
    assert not bench.verdict(rows)["ok"]


def test_memory_is_that_of_all_processes_of_a_trainer(bench, tmp_path):
    hold = "import subprocess, sys, time; x = bytearray(60 << 20); x[::4096] = b'1' * len(x[::4096]); time.sleep(1.2)"
    parent = f"import subprocess, sys; open(sys.argv[1], 'w'); subprocess.run([sys.executable, '-c', {hold!r}])"
    seen: list[int] = []
    bench.timed([sys.executable, "-c", parent, str(tmp_path / "weights")], tmp_path / "weights", seen.append)
    assert 60 << 20 < max(seen) < 150 << 20


def test_without_shards_it_says_what_it_needs(bench, tmp_path):
    command = [sys.executable, str(BENCH / "run.py"), "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 2 and "needs train-*.tar and test-*.tar" in done.stderr
