"""What is installed, whether it works together, and a training step, in a process of its own."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import Any, NamedTuple

from packaging.requirements import Requirement

from clipkit.doctor.machine import Check

PATIENCE_S = 180.0
"""Of the process that tries: cold imports over a network file system take a minute."""
STAGES = ("torch", "torchvision", "open_clip", "step")
SAME_INDEX = (
    "torch and torchvision must come from the same index: pip install --force-reinstall torch torchvision "
    "(or both from PyTorch's index of CPU builds)"
)


class Trial(NamedTuple):
    """What the process that tried found, and how many GPUs there are."""

    checks: list[Check]
    gpus: int


def installed() -> list[Check]:
    """Python and all packages that clipkit needs, against the versions that it asks for."""
    checks = [Check("python", "ok", sys.version.split()[0])]
    try:
        wanted = [text for text in metadata.requires("clipkit") or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return [*checks, Check("packages", "warn", "clipkit is not installed", "pip install -e . in its folder")]
    good = []
    for text in wanted:
        need = Requirement(text)
        if need.marker and not need.marker.evaluate():
            continue
        name = need.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            checks.append(Check(name, "fail", "not installed", f"pip install '{text}'"))
            continue
        if not need.specifier.contains(version, prereleases=True):
            checks.append(Check(name, "fail", f"{version}, {need.specifier} is needed", f"pip install -U '{text}'"))
        else:
            good.append(f"{name} {version}")
    return [*checks, Check("packages", "ok", ", ".join(good)), *_same_build()]


def _same_build() -> list[Check]:
    """torch and torchvision of different builds (`+cpu`, `+cu128`): pip finds no conflict, and the import fails."""
    try:
        builds = {name: metadata.version(name).partition("+")[2] for name in ("torch", "torchvision")}
    except metadata.PackageNotFoundError:
        return []
    if len(set(builds.values())) == 1:
        return []
    told = " and ".join(f"{name} of {build or 'PyPI'}" for name, build in builds.items())
    return [Check("torch and torchvision", "warn", f"{told}: different builds", SAME_INDEX)]


def tried() -> Trial:
    """Imports, devices and one step, tried in a child process."""
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "clipkit.doctor.trial"]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=said, text=True, timeout=PATIENCE_S, check=False
            )
            out, ended = done.stdout, _ended(done.returncode)
        except subprocess.TimeoutExpired as error:
            out = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            ended = f"no answer in {PATIENCE_S:.0f} s"
        said.seek(0)
        last = (said.read().strip().splitlines() or [""])[-1]
    found = {row["stage"]: row for row in map(json.loads, out.splitlines())}
    checks: list[Check] = []
    for stage in STAGES:
        if stage not in found:
            checks.append(Check(stage, "fail", f"{ended} {last}".strip(), _fix(stage, last)))
            break
        if "error" in found[stage]:
            checks.append(Check(stage, "fail", found[stage]["error"], _fix(stage, found[stage]["error"])))
            break
        checks += _told(stage, found[stage])
    return Trial(checks, len(found.get("torch", {}).get("gpus", ())))


def _ended(code: int) -> str:
    return f"the process was ended by {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"


def _told(stage: str, facts: dict[str, Any]) -> list[Check]:
    """The checks of a stage that went well."""
    if stage == "torch":
        return _devices(facts)
    if stage == "step":
        found = f"one training step on {facts['device']} in {facts['dtype']}: loss {facts['loss']:.3f}"
        return [Check("step", "ok", f"{found}, {facts['seconds']:.1f} s")]
    return [Check(stage, "ok", "imports")]


def _devices(facts: dict[str, Any]) -> list[Check]:
    driver = _driver()
    cards = [f"{card['name']} ({card['gb']:.0f} GB, sm {card['sm']})" for card in facts["gpus"]]
    wheel = f"torch {facts['version']}, built for " + (f"CUDA {facts['cuda']}" if facts["cuda"] else "CPUs")
    if cards:
        more = f", driver {driver}" if driver else ""
        found = f"{', '.join(cards)}; {wheel}{more}, NCCL {facts['nccl']}"
        checks = [Check("device", "ok", found)]
        if not facts["bf16"]:
            checks.append(Check("bf16", "warn", "this GPU does not compute in bf16", "training is in fp32 by itself"))
        return checks
    if driver:
        fix = (
            "install a torch that is built for CUDA: pip install --force-reinstall torch torchvision"
            if not facts["cuda"]
            else f"update the driver, or install a torch for an older CUDA than {facts['cuda']}; see nvidia-smi"
        )
        return [Check("device", "fail", f"{wheel}, sees no GPU, while driver {driver} is there", fix)]
    bf16 = "bf16 by AMX" if facts["bf16"] else "fp32 (bf16 is slower without AMX)"
    return [Check("device", "ok", f"CPU, {facts['threads']} threads, trains in {bf16}; {wheel}")]


def _driver() -> str:
    """The version of the GPUs' driver; empty where there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def _fix(stage: str, error: str) -> str:
    """What to type about a stage that failed."""
    if "torchvision::" in error:
        return SAME_INDEX
    if missing := re.search(r"No module named '([\w.]+)'", error):
        name = {"open_clip": "open_clip_torch"}.get(missing[1].partition(".")[0], missing[1].partition(".")[0])
        return f"pip install {name}"
    return {
        "torch": "pip install --force-reinstall torch torchvision",
        "torchvision": SAME_INDEX,
        "open_clip": "pip install --force-reinstall open_clip_torch timm",
    }.get(stage, "see the whole error with: python -X faulthandler -m clipkit.doctor.trial")
