"""Rule 2: a run killed at any moment and started again is the run that was never killed."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from clipkit.log import read_rows
from tests import making, warm

SAMPLES = 50
STEPS = 60


def kill_at(recipe: Path, step: int) -> None:
    """Train until `step` has been logged, then SIGKILL."""
    run = recipe.parent / "run"
    child = warm.Started(warm.folder(), "train", str(recipe), environment=making.environment())
    log = run / "metrics.jsonl"
    while not child.has_ended() and (not log.exists() or max(making.losses(run), default=0) < step):
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def settings(folder: Path, **more: object) -> Path:
    folder.mkdir()
    return making.recipe(folder, **{"steps": STEPS, "ema": 0.9, "objective": "sigmoid", "chunk": 3, **more})


def test_five_kills_change_neither_samples_nor_losses_nor_scores(tmp_path: Path) -> None:
    held_out = making.shards(tmp_path / "held_out", (7,), first=100)
    scored = {"suite": making.suite(tmp_path, held_out), "every": 4}  # more often than checkpoints are saved
    straight, killed = (settings(tmp_path / name, eval=scored) for name in ("straight", "killed"))
    assert making.clipkit("train", str(straight)).returncode == 0
    dice = random.Random(5)
    for step in sorted(dice.sample(range(3, STEPS - 2), 5)):
        kill_at(killed, step)
    # and once more with another number of workers, which must not matter either
    done = making.clipkit("train", str(killed), "data.workers=2")
    assert done.returncode == 0, done.stderr
    one, two = straight.parent / "run", killed.parent / "run"
    assert making.samples(two) == making.samples(one)
    assert making.losses(two) == making.losses(one), "bitwise"
    assert len(making.losses(one)) == STEPS
    assert read_rows(one / "scores.jsonl") == read_rows(two / "scores.jsonl")
    last = f"checkpoints/{STEPS:09d}"
    for name in ("model", "ema", "optim"):
        assert (one / last / f"{name}.safetensors").read_bytes() == (two / last / f"{name}.safetensors").read_bytes()
    assert not list((two / "checkpoints").glob(".*"))

    # the same run, carried on by two processes with other workers: every sample exactly once an epoch
    more = making.launch("clipkit.train", str(killed), "steps=75", "data.workers=1")
    assert more.returncode == 0, more.stderr
    seen = making.samples(two)
    assert sorted(position for pairs in seen.values() for position, _ in pairs) == list(range(75 * 8))
    for epoch in range(75 * 8 // SAMPLES):
        inside = [key for pairs in seen.values() for position, key in pairs if position // SAMPLES == epoch]
        assert Counter(inside) == Counter({f"{number:05d}": 1 for number in range(SAMPLES)})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_and_exits_with_75(tmp_path: Path, number: signal.Signals) -> None:
    recipe = settings(tmp_path / "a", steps=100_000, save_every=100_000)
    command = [sys.executable, "-m", "clipkit.train", str(recipe), "data.workers=2"]
    child = subprocess.Popen(
        command, env=making.environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = recipe.parent / "run/metrics.jsonl"
    while child.poll() is None and not log.exists():
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(child.pid, number)  # as Ctrl-C and Slurm do: the data workers get it too
    if number == signal.SIGTERM:  # and launchers maybe twice
        time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 75, said
    assert f"stopped by {number.name} at step" in said and "Traceback" not in said
    saved = max(int(path.name) for path in (recipe.parent / "run/checkpoints").iterdir())
    assert saved == max(making.losses(recipe.parent / "run")), "no finished step is lost"
