"""Finding checkpoints, telling damaged ones from whole ones, and reading what they hold."""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from clipkit.checkpoint.pieces import Stored
from clipkit.errors import StorageError, UserError

MANIFEST = "manifest.json"


def folder(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run / "checkpoints" / f"{step:09d}"


def steps(run: Path) -> list[int]:
    """The steps of which there are checkpoints, damaged or not, in rising order."""
    return sorted(int(p.name) for p in (run / "checkpoints").glob("[0-9]*") if p.name.isdigit())


def facts_of(path: Path) -> dict[str, int]:
    """What a manifest says of a file: its size and CRC32."""
    crc = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": crc}


def manifest(place: Path) -> dict[str, dict[str, int]]:
    """{file: its size and CRC32} of a checkpoint.

    Raises: StorageError when it cannot be read, or names a file outside of the checkpoint.
    """
    try:
        wanted = json.loads((place / MANIFEST).read_text())["files"]
        if any(".." in (path := PurePosixPath(name)).parts or path.is_absolute() for name in wanted):
            raise ValueError("it names files outside of the checkpoint")
        return {name: {"bytes": int(facts["bytes"]), "crc32": int(facts["crc32"])} for name, facts in wanted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{place / MANIFEST}: not readable ({error})") from error


def verify(place: Path) -> None:
    """Compare every file with the manifest, some at once: zlib reads 1 GiB/s with each thread.

    Raises: StorageError naming the first file that is missing, cut or changed.
    """
    wanted = manifest(place)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for problem in threads.map(lambda name: _problem(place / name, wanted[name]), wanted):
            if problem:
                raise StorageError(problem)


def _problem(path: Path, wanted: dict[str, int]) -> str | None:
    if not path.is_file():
        return f"{path}: is missing"
    try:
        same = path.stat().st_size == wanted["bytes"] and facts_of(path) == wanted
    except OSError as error:
        return f"{path}: not readable ({error})"
    return None if same else f"{path}: its checksum is not the one it was written with"


def newest(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that verifies; each damaged one on the way is named through `warn`.

    Raises: StorageError when there are checkpoints and all are damaged: starting over would hide it.
    """
    there = steps(run)
    for step in reversed(there):
        try:
            verify(folder(run, step))
        except StorageError as error:
            warn(f"damaged checkpoint passed over: {error}")
        else:
            return folder(run, step)
    if there:
        raise StorageError(f"{run / 'checkpoints'}: all {len(there)} are damaged; move them away to start over")
    return None


def locate(path: Path, warn: Callable[[str], None]) -> Path:
    """The checkpoint that a run folder or a checkpoint folder means; it verifies.

    Raises: UserError when there is none; StorageError when it is damaged.
    """
    if (path / "model.yaml").is_file():
        verify(path)
        return path
    found = newest(path, warn)
    if found is None:
        raise UserError(f"{path}: holds no checkpoint; a run folder has checkpoints/000001000/model.yaml and the like")
    return found


def clear_leftovers(run: Path) -> None:
    """Remove what a run killed while saving has left half written."""
    for work in (run / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(work, ignore_errors=True)


def holds(path: Path) -> bool:
    """Are there tensors of that name (`x/ema.safetensors`), in one file or in shards?"""
    return path.is_file() or path.with_suffix("").is_dir()


def tensors(path: Path, like: Callable[[str], Tensor | None] = lambda name: None) -> dict[str, Tensor]:
    """The named tensors of `x/model.safetensors`, or of the shards in `x/model/` where ranks wrote their own parts.

    Whole and on the CPU, but where `like(name)` is a DTensor of the same shape: that one comes back split in the same
    way, and a rank reads no more than its part of it, whatever the number of ranks that wrote it.
    Raises: StorageError when there are none, or they are damaged.
    """
    stored = Stored(path)
    return {name: stored.get(name, like(name)) for name in stored.pieces}


def facts(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint."""
    return json.loads(path.read_text(encoding="utf-8"))
