"""Index folders of any vectors, exact, so that plain arithmetic says what they must find."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipkit.vectors import engine, recording, records

LANGS = ("en", "de", "fr")


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def vectors(n: int, width: int = 12, seed: int = 0) -> np.ndarray:
    """Unit rows [n, width] in a cone, as those of real models are."""
    dice = np.random.default_rng(seed)
    return unit(dice.normal(size=(n, width)) + 3 * unit(dice.normal(size=width)))


def table(n: int) -> pa.Table:
    """What the rows are."""
    return pa.table({
        "image_path": [f"k{i}" for i in range(n)], "key": [f"k{i}" for i in range(n)],
        "caption": [f"caption {i}" for i in range(n)], "shard": ["nowhere.tar"] * n, "offset": list(range(n)),
        "size": [1] * n, "width": [i * 10 for i in range(n)], "lang": [LANGS[i % 3] for i in range(n)],
    })  # fmt: skip


def write_index(folder: Path, kinds: dict[str, np.ndarray], metadata: pa.Table | None = None, **about: Any) -> Path:
    """An exact index of the rows of each kind, as `clipkit index` lays it out."""
    folder.mkdir(parents=True)
    rows, width = next(iter(kinds.values())).shape
    facts: dict[str, Any] = {"factory": "Flat", "knobs": {}, "rerank": "inside"}
    for kind, each in kinds.items():
        index = engine.make("Flat", width, each)
        engine.fill(index, [(0, each)])
        engine.write(index, folder / f"{kind}.index")
    recording.write(folder / records.FILE, [table(rows) if metadata is None else metadata])
    told = {"format": 2, "model": None, "digest": None, "rows": rows, "width": width, "vectors": [], **about}
    told["kinds"] = {kind: {**facts, "files": [f"{kind}.index"]} for kind in kinds}
    (folder / "index.json").write_text(json.dumps(told))
    return folder
