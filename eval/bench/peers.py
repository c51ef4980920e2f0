"""The environments of the tools that clipkit is measured against, each made on first use."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def python_with(name: str, *packages: str, ours: tuple[str, ...] = ("torch", "torchvision", "open_clip_torch")) -> str:
    """The Python of the environment `.venv-NAME`, made in about a minute where there is none.

    The packages `ours` are of the versions that clipkit runs with here.
    """
    place = REPO / f".venv-{name}"
    python = place / "bin" / "python"
    if not python.exists():
        print(f"making {place} with {', '.join(packages)} ...", file=sys.stderr, flush=True)
        same = [f"{package}=={version(package).split('+')[0]}" for package in ours]
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "uv"], check=True)
        install = [str(place / "bin" / "uv"), "pip", "install", "-q", "--compile-bytecode", "--python", str(python)]
        subprocess.run([*install, *same, *packages], check=True)
    return str(python)


def trainer() -> str:
    """open_clip_train's: its releases cannot read shards with webdataset 1.x, and need pandas without asking for it."""
    return python_with("peer", "webdataset<=0.2.86", "pandas")


def evaluator() -> str:
    """clip_benchmark's: it imports requests without asking for it, and fails at its end with NumPy 2.4."""
    return python_with("clip-benchmark", "clip-benchmark", "numpy<2.4", "requests")


def autofaiss() -> str:
    """autofaiss's, for `autofaiss_side.py`: it builds nothing quantized with a FAISS of today, and the one of its time
    was built for NumPy 1, which pyarrow left behind with its version 20. Indexes of it are read by today's FAISS."""
    return python_with("autofaiss", "autofaiss==2.18.0", "faiss-cpu==1.7.4", "numpy<2", "pyarrow<20", ours=())
