"""Two hosts, as two launchers on loopback with ranks of their own, train as one process does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import making

FOLDER = making.ROOT / "launch"


def start(recipe: Path, run: Path, config: str, *options: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / config), *options]
    command = [*launcher, "-m", "clipkit.train", str(recipe), f"run={run}"]
    env = making.environment(ACCELERATE_USE_CPU="true")
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_hosts_and_two_processes_equal_one(tmp_path: Path) -> None:
    recipe = making.recipe(tmp_path, steps=6)
    meeting = ("--num_processes", "2", "--main_process_port", str(making.free_port()))
    started = [
        *(start(recipe, tmp_path / "hosts", "nodes.yaml", *meeting, "--machine_rank", str(rank)) for rank in (0, 1)),
        start(recipe, tmp_path / "two", "cpu2.yaml", "--main_process_port", str(making.free_port())),
        start(recipe, tmp_path / "one", "single.yaml"),
    ]
    for process in started:
        told = process.communicate(timeout=280)[0]
        assert process.returncode == 0, told

    one = making.losses(tmp_path / "one")
    assert one.keys() == set(range(1, 7))
    for other in ("hosts", "two"):
        assert len(list((tmp_path / other).glob("samples-rank*.jsonl"))) == 2
        assert making.samples(tmp_path / other) == making.samples(tmp_path / "one")
        assert making.losses(tmp_path / other) == pytest.approx(one, rel=1e-5)
