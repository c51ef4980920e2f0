"""Checkpoints: folders that are complete or absent, without pickle, each file with its checksum.

runs/x/checkpoints/000001000/{model.safetensors, model.yaml, optim.safetensors, train.yaml, data.json, manifest.json}
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.errors import StorageError

MANIFEST = "manifest.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", ".*")


def folder(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run / "checkpoints" / f"{step:09d}"


def save(run: Path, step: int, files: Mapping[str, str | Mapping[str, Tensor] | Path], keep: int) -> Path:
    """Write a checkpoint beside its place, sync it, rename it into place; then drop all but the newest `keep`.

    `files` maps a name to text, to named tensors (safetensors), or to a folder that is copied
    without its weights (a tokenizer and its configuration).
    Raises: StorageError when the disk refuses; older checkpoints are untouched then.
    """
    place = folder(run, step)
    work = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        for name, content in files.items():
            _write(work / name, content)
        manifest = {"version": 1, "step": step, "files": {n: _facts(work / n) for n in _names(work)}}
        _write(work / MANIFEST, json.dumps(manifest, indent=1))
        for path in [*work.rglob("*"), work]:
            _sync(path)
        shutil.rmtree(place, ignore_errors=True)
        work.rename(place)
        _sync(place.parent)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise StorageError(f"{place}: could not be written ({error}); older checkpoints are untouched") from error
    kept = [other for other in _steps(run) if other <= step]  # later ones are damaged: the run has passed over them
    for old in kept[: -max(keep, 1)]:
        shutil.rmtree(folder(run, old), ignore_errors=True)
    return place


def _write(path: Path, content: str | Mapping[str, Tensor] | Path) -> None:
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, Path):
        shutil.copytree(content, path, ignore=shutil.ignore_patterns(*WEIGHTS))
    else:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {name: x.detach().cpu().contiguous() for name, x in content.items()}
        try:
            save_file(tensors, path)
        except SafetensorError as error:  # a full disk arrives as this, not as an OSError
            raise OSError(str(error)) from error


def _names(work: Path) -> list[str]:
    return sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())


def _facts(path: Path) -> dict[str, int]:
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": crc}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _steps(run: Path) -> list[int]:
    return sorted(int(p.name) for p in (run / "checkpoints").glob("[0-9]*") if p.name.isdigit())


def verify(place: Path) -> None:
    """Compare every file with the manifest.

    Raises: StorageError naming the first file that is missing, cut or changed.
    """
    try:
        wanted = json.loads((place / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{place / MANIFEST}: not readable ({error})") from error
    for name, facts in wanted.items():
        path = place / name
        if not path.is_file():
            raise StorageError(f"{path}: is missing")
        try:
            same = _facts(path) == facts
        except OSError as error:
            raise StorageError(f"{path}: not readable ({error})") from error
        if not same:
            raise StorageError(f"{path}: its checksum is not the one it was written with")


def newest(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that verifies; each damaged one on the way is named through `warn`.

    Raises: StorageError when there are checkpoints and all are damaged: starting over would hide it.
    """
    steps = _steps(run)
    for step in reversed(steps):
        try:
            verify(folder(run, step))
        except StorageError as error:
            warn(f"damaged checkpoint passed over: {error}")
        else:
            return folder(run, step)
    if steps:
        raise StorageError(f"{run / 'checkpoints'}: all {len(steps)} are damaged; move them away to start over")
    return None


def clear_leftovers(run: Path) -> None:
    """Remove what a run killed while saving has left half written."""
    for work in (run / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(work, ignore_errors=True)


def tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The named tensors of a safetensors file.

    Raises: StorageError when it is not one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path}: not a readable safetensors file ({error})") from error


def facts(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint."""
    return json.loads(path.read_text(encoding="utf-8"))
