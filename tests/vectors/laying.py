"""Small vectors folders, as `clipkit embed` and as clip-retrieval write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.vectors import Stored

WIDTH = 16


def rows(n: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Unit rows float32 [n, width] that point anywhere."""
    return unit(np.random.default_rng(seed).normal(size=(n, width)))


def unit(x: np.ndarray) -> np.ndarray:
    """Each row by its length, float32."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def ours(
    folder: Path,
    counts: Sequence[int] = (30, 20),
    seed: int = 0,
    first: int = 0,
    image: np.ndarray | None = None,
    text: np.ndarray | None | bool = True,
    **about: Any,
) -> Path:
    """A folder of `sum(counts)` samples in parts, with keys from k<first> on; text False: no captions."""
    n = sum(counts)
    image = rows(n, seed) if image is None else image
    if isinstance(text, bool):
        text = rows(n, seed + 1000, image.shape[1]) if text else None
    start = 0
    for part, count in enumerate(counts):
        here = slice(start, start + count)
        _save(folder / "img_emb" / f"img_emb_{part:06d}.npy", image[here])
        if text is not None:
            _save(folder / "text_emb" / f"text_emb_{part:06d}.npy", text[here])
        (folder / "metadata").mkdir(exist_ok=True)
        records = [record(first + number) for number in range(start, start + count)]
        pq.write_table(pa.Table.from_pylist(records, SCHEMA), folder / "metadata" / f"metadata_{part:06d}.parquet")
        start += count
    facts = {"model": "m", "digest": "0123456789abcdef", "rows": n, **about}
    (folder / "vectors.json").write_text(json.dumps(facts))
    return folder


SCHEMA = pa.schema(
    [
        ("image_path", pa.string()), ("key", pa.string()), ("caption", pa.string()), ("shard", pa.string()),
        ("offset", pa.int64()), ("size", pa.int64()), ("width", pa.int64()), ("tags", pa.list_(pa.string())),
        ("score", pa.float64()),
    ]
)  # fmt: skip


def record(number: int) -> dict[str, Any]:
    """The metadata of the sample `number`."""
    return {
        "image_path": f"k{number}", "key": f"k{number}", "caption": f"caption {number}", "shard": "s.tar",
        "offset": number, "size": 1, "width": 100 + number, "tags": [f"t{number % 3}"],
        "score": None if number % 5 == 0 else number / 2,
    }  # fmt: skip


def theirs(folder: Path, counts: Sequence[int] = (3, 2), seed: int = 0, digits: int = 1, **columns: Any) -> Path:
    """A folder as `clipkit embed` does not write it and `clip-retrieval inference` does: no vectors.json, part numbers
    of `digits` digits, float16, image_path and caption, and `columns` (name: a function of the row's number)."""
    start = 0
    image, text = rows(sum(counts), seed), rows(sum(counts), seed + 1000)
    for part, count in enumerate(counts):
        here = range(start, start + count)
        _save(folder / "img_emb" / f"img_emb_{part:0{digits}d}.npy", image[start : start + count])
        _save(folder / "text_emb" / f"text_emb_{part:0{digits}d}.npy", text[start : start + count])
        told: dict[str, list[Any]] = {"image_path": [f"{i:09d}" for i in here], "caption": [f"c{i}" for i in here]}
        told.update({name: [make(i) for i in here] for name, make in columns.items()})
        (folder / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.table(told), folder / "metadata" / f"metadata_{part:0{digits}d}.parquet")
        start += count
    return folder


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array.astype(np.float16))


def answers(place: Path) -> dict[str, Any]:
    """What an index tells: the neighbours of 20 queries among each kind, and all records."""
    stored = Stored(place)
    found = {kind: stored.nearest(kind, rows(20, 99), 9) for kind in stored.kinds}
    told = {f"{kind} {i}": each.tolist() for kind, pair in found.items() for i, each in enumerate(pair)}
    return {**told, "records": stored.records.get(range(len(stored))), "columns": stored.records.columns}
