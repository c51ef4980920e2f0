"""Small collections, a model that was never trained, and what a folder of vectors holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests import making, samples


def pictures(folder: Path, names: list[str], captions: bool = True) -> Path:
    """Files of shapes, by number in the order given, with a `.txt` beside each."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        jpg, caption = making.picture(number)
        path.write_bytes(jpg)
        if captions:
            path.with_suffix(".txt").write_text(f"{caption}\n")
    return folder


def broken(folder: Path, *names: str) -> None:
    """Pictures that cannot be read."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no picture at all")


def everything(folder: Path) -> dict[str, bytes]:
    """What all files below a folder hold, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path, kind: str = "img_emb") -> np.ndarray:
    """All rows of a kind, float32 [n, D]."""
    return np.concatenate([np.load(path) for path in sorted((folder / kind).glob("*.npy"))]).astype(np.float32)


def metadata(folder: Path) -> list[dict[str, Any]]:
    """The metadata of all rows; a column that a part lacks is null."""
    tables = [pq.read_table(path).to_pylist() for path in sorted((folder / "metadata").glob("*.parquet"))]
    names = {name for table in tables for row in table for name in row}
    return [{name: row.get(name) for name in names} for table in tables for row in table]


def about(folder: Path) -> dict[str, Any]:
    """What vectors.json says."""
    return json.loads((folder / "vectors.json").read_text())


def shards(folder: Path, counts: tuple[int, ...] = (7, 0, 5), bad: tuple[int, ...] = ()) -> Path:
    """Shards of shapes; the pictures of the samples `bad` cannot be read."""
    folder.mkdir(parents=True)
    for shard in range(len(counts)):
        several = range(sum(counts[:shard]), sum(counts[: shard + 1]))
        some = [samples.sample(n, **({"jpg": b"no picture"} if n in bad else {})) for n in several]
        samples.write_shard(folder / f"{shard:03d}.tar", some)
    return folder
