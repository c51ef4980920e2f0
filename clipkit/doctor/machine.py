"""What the machine has left for a training run, and what its environment says."""

import os
import re
import resource
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

GB = 1e9
NEEDED = {"memory": 4.0, "disk": 10.0, "temporary": 1.0, "shared": 1.0}
"""Gigabytes below which a check warns: a checkpoint of a ViT-L/14 is 5, a batch of 1,024 pictures 0.15."""
OPEN_FILES = 4096


class Check(NamedTuple):
    """One thing looked at: ok, warn or fail, what was found, and for the latter two what to type."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def memory() -> list[Check]:
    """Free memory of this machine; nothing where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return []
    kb = {name: int(value.split()[0]) for name, _, value in (x.partition(":") for x in path.read_text().splitlines())}
    free, total = kb["MemAvailable"] * 1024 / GB, kb["MemTotal"] * 1024 / GB
    return [_enough("memory", free, f"{free:.1f} of {total:.1f} GB free", "end other programs, or lower data.batch")]


def disk() -> list[Check]:
    """Free space where runs, temporary files and batches on their way between processes go."""
    places = {"disk": Path.cwd(), "temporary": Path(tempfile.gettempdir()), "shared": Path("/dev/shm")}
    fixes = {
        "disk": "free some, or give another folder with run=...",
        "temporary": "set TMPDIR to a folder with more space",
        "shared": "start the container with --shm-size=8g (Docker), or mount a memory-backed emptyDir at /dev/shm "
        "(Kubernetes); or data.workers=0",
    }
    checks = []
    for name, place in places.items():
        if place.is_dir():
            free = shutil.disk_usage(place).free / GB
            checks.append(_enough(name, free, f"{place}: {free:.1f} GB free", fixes[name]))
    return checks


def _enough(name: str, free: float, found: str, fix: str) -> Check:
    return Check(name, "ok", found) if free >= NEEDED[name] else Check(name, "warn", found, fix)


def files() -> Check:
    """How many files a process may have open: each shard that is read is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Check("open files", "ok", f"{soft} a process")
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(16 * OPEN_FILES, hard)
    return Check("open files", "warn", f"{soft} a process", f"ulimit -n {most}")


def hub() -> Check:
    """Whether pretrained weights and tokenizers may be fetched."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Check("hub", "ok", "HF_HUB_OFFLINE is set: only what is in the cache can be loaded")
    return Check("hub", "ok", "weights and tokenizers are fetched from the Hugging Face hub where they are asked for")


def network(gpus: int) -> list[Check]:
    """How GPUs and machines talk to each other."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    checks = [Check("network", "ok", f"interfaces {', '.join(names) or 'none'}")]
    if gpus > 1:
        checks.append(_links())
    chosen = {name: value for name, value in sorted(os.environ.items()) if name.startswith(("NCCL_", "GLOO_"))}
    slow = [name for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SHM_DISABLE") if chosen.get(name) == "1"]
    wanted = [one for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") for one in chosen.get(name, "").split(",")]
    plain = [one.lstrip("=") for one in wanted if one and not one.startswith("^")]
    absent = [one for one in plain if not any(name.startswith(one) for name in names) and one != "lo"]
    told = " ".join(f"{name}={value}" for name, value in chosen.items())
    if absent:
        fix = f"set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to one of {', '.join(names)}, or unset them"
        checks.append(Check("NCCL", "fail", f"{told}: no interface {', '.join(absent)}", fix))
    elif slow:
        checks.append(Check("NCCL", "warn", f"{told}: slows down every exchange", f"unset {' '.join(slow)}"))
    elif told:
        checks.append(Check("NCCL", "ok", told))
    return checks


def _links() -> Check:
    """What connects the GPUs, by nvidia-smi."""
    try:
        done = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Check("links", "ok", "unknown: nvidia-smi does not tell")
    kinds = sorted(set(re.findall(r"\b(NV\d+|PIX|PXB|PHB|NODE|SYS)\b", done.stdout.partition("Legend")[0])))
    if any(kind.startswith("NV") for kind in kinds):
        return Check("links", "ok", f"NVLink between GPUs ({', '.join(kinds)})")
    return Check("links", "ok", f"no NVLink: GPUs talk over PCIe ({', '.join(kinds) or 'unknown'})")


def launcher(gpus: int) -> list[Check]:
    """What `accelerate launch` would do here, and whether the processes that were asked for fit the devices."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    path = home / "accelerate" / "default_config.yaml"
    checks = [Check("accelerate", "ok", "no default configuration; options are given to accelerate launch")]
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        asked = re.search(r"^num_processes:\s*(\d+)", text, re.M)
        machines = re.search(r"^num_machines:\s*(\d+)", text, re.M)
        here = int(asked[1]) // max(1, int(machines[1]) if machines else 1) if asked else 1
        checks = [_fits("accelerate", f"{path}: {here} processes on this machine", here, gpus, f"edit {path}")]
    if "WORLD_SIZE" in os.environ:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        found = f"WORLD_SIZE={os.environ['WORLD_SIZE']}, {here} of them here"
        checks.append(_fits("launcher", found, here, gpus, f"start {max(gpus, 1)} processes on this machine"))
    return checks


def _fits(name: str, found: str, processes: int, gpus: int, fix: str) -> Check:
    """Two processes on one GPU cannot talk by NCCL."""
    if 0 < gpus < processes:
        return Check(name, "fail", f"{found}, but {gpus} GPUs", fix)
    if gpus > processes:
        return Check(name, "warn", f"{found} of {gpus} GPUs", f"--num_processes {gpus} uses them all")
    return Check(name, "ok", found)
