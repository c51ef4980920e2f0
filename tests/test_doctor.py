"""What `clipkit doctor` finds on this machine and on broken ones, what it tells to type, and its exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clipkit.doctor import machine, software
from tests import making


def doctor(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clipkit", "doctor", *options]
    env = making.environment(**env)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def broken(folder: Path, module: str, source: str) -> str:
    """PYTHONPATH with a module that hides the one installed."""
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text(source)
    return f"{folder}:{making.ROOT}"


def test_a_machine_that_is_fit_passes_with_a_training_step() -> None:
    done = doctor("--json")
    checks = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, done.stdout
    assert {"python", "packages", "device", "torchvision", "open_clip", "step", "memory", "disk"} <= checks.keys()
    assert checks["step"]["found"].startswith("one training step on cpu") and "torch " in checks["packages"]["found"]


@pytest.mark.parametrize(
    ("module", "source", "name", "found", "fix"),
    [
        ("torch", "raise ModuleNotFoundError(\"No module named 'torch'\")", "torch", "No module", "pip install torch"),
        ("torch", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "torch", "SIGSEGV", "--force-reinstall"),
        (
            "torchvision",
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "torchvision",
            "RuntimeError: operator torchvision::nms does not exist",
            "must come from the same index: pip install --force-reinstall torch torchvision",
        ),
    ],
)
def test_what_does_not_import_fails_with_what_to_type(
    tmp_path: Path, module: str, source: str, name: str, found: str, fix: str
) -> None:
    done = doctor(PYTHONPATH=broken(tmp_path, module, source))
    row = next(line.split("\t") for line in done.stdout.splitlines() if line.startswith(f"fail\t{name}"))
    assert done.returncode == 1 and found in row[2] and fix in row[2]


def test_versions_are_held_against_what_clipkit_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.15.0+cpu", "torchvision": "0.29.2", "accelerate": "1.9.9"}

    def version(name: str) -> str:
        if name not in versions:
            raise software.metadata.PackageNotFoundError(name)
        return versions[name]

    asked = ["torch>=2.6", "torchvision", "accelerate>=1.10", "rich", "duckdb>=1.1; extra == 'curate'"]
    monkeypatch.setattr(software.metadata, "version", version)
    monkeypatch.setattr(software.metadata, "requires", lambda name: asked)
    by_name = {check.name: check for check in software.installed()}
    assert by_name["accelerate"].state == "fail" and by_name["accelerate"].fix == "pip install -U 'accelerate>=1.10'"
    assert by_name["rich"] == machine.Check("rich", "fail", "not installed", "pip install 'rich'")
    clash = by_name["torch and torchvision"]
    assert clash.state == "warn" and clash.found == "torch of cpu and torchvision of PyPI: different builds"
    assert "duckdb" not in by_name and by_name["packages"].found == "torch 2.15.0+cpu, torchvision 0.29.2"


def test_gpus_are_told_and_a_wheel_that_does_not_see_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_driver", lambda: "570.1")
    card = {"name": "NVIDIA H100", "gb": 85.0, "sm": "9.0"}
    seen = {"version": "2.15.0", "cuda": "12.8", "gpus": [card], "bf16": True, "nccl": "2.27.3", "threads": 8}
    (good,) = software._devices(seen)
    assert good.state == "ok" and "NVIDIA H100 (85 GB, sm 9.0)" in good.found and "driver 570.1" in good.found
    (blind,) = software._devices({**seen, "gpus": [], "cuda": None})
    assert blind.state == "fail" and "install a torch that is built for CUDA" in blind.fix
    (old,) = software._devices({**seen, "gpus": []})
    assert old.state == "fail" and "update the driver" in old.fix


def test_what_the_machine_lacks_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "NEEDED", dict.fromkeys(machine.NEEDED, 1e9))
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (256, 65536))
    checks = [*machine.memory(), *machine.disk(), machine.files()]
    assert {check.state for check in checks} == {"warn"} and all(check.fix for check in checks)
    assert checks[-1].fix == "ulimit -n 65536"


def test_processes_and_interfaces_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert machine.launcher(2)[0].found.startswith("no default configuration")
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("num_machines: 2\nnum_processes: 16\n")
    assert [check.state for check in machine.launcher(8)] == ["ok"]
    assert [check.state for check in machine.launcher(4)] == ["fail"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine.launcher(8)[1] == machine.Check(
        "launcher", "warn", "WORLD_SIZE=4, 4 of them here of 8 GPUs", "--num_processes 8 uses them all"
    )
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib7")
    (absent,) = [check for check in machine.network(1) if check.name == "NCCL"]
    assert absent.state == "fail" and "no interface ib7" in absent.found
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "^docker")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    (slow,) = [check for check in machine.network(1) if check.name == "NCCL"]
    assert slow.state == "warn" and slow.fix == "unset NCCL_P2P_DISABLE"
