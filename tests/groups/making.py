"""Vectors folders made by hand: of shards (tests/datatools/curating.py) and of loose files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.samples import encoded, shape


def of_files(folder: Path, image: Any, text: Any = None, captions: list[str] | None = None) -> str:
    """A vectors folder of pictures 0.jpg, 1.jpg, ... that lie in folder/files, with these rows; picture i has sides of
    20 + i pixels."""
    (folder / "files").mkdir(parents=True)
    out = folder / "v"
    records = []
    for i in range(len(image)):
        path = folder / f"files/{i}.jpg"
        path.write_bytes(encoded(shape(i, 20 + i, 20 + i)[0]))
        caption = f"caption {i}" if captions is None else captions[i]
        records.append(
            {"image_path": str(path), "key": f"k{i}", "caption": caption, "shard": str(path), "offset": 0,
             "size": path.stat().st_size, "width": 20 + i, "height": 20 + i}
        )  # fmt: skip
    for name, rows in (("img_emb", image), ("text_emb", text)):
        if rows is not None:
            (out / name).mkdir(parents=True)
            np.save(out / name / f"{name}_000000.npy", np.asarray(rows, np.float32))
    (out / "metadata").mkdir()
    pq.write_table(pa.Table.from_pylist(records), out / "metadata/metadata_000000.parquet")
    facts = {"model": "m", "source": str(folder / "files"), "rows": len(image)}
    (out / "vectors.json").write_text(json.dumps(facts))
    return str(out)


def plain_parquet(out: Path, rows: Any, **columns: Any) -> str:
    """A vectors folder as clip-retrieval writes it: no vectors.json, and these columns of metadata."""
    (out / "img_emb").mkdir(parents=True)
    (out / "metadata").mkdir()
    np.save(out / "img_emb/img_emb_0.npy", np.asarray(rows, np.float16))
    pq.write_table(pa.table(columns), out / "metadata/metadata_0.parquet")
    return str(out)


def around(centres: Any, counts: list[int], spread: float, seed: int = 0) -> np.ndarray:
    """Unit rows, counts[i] of them around centre i, in this order."""
    dice = np.random.default_rng(seed)
    centres = np.asarray(centres, float)
    rows = np.repeat(centres, counts, 0) + spread * dice.normal(size=(sum(counts), centres.shape[1]))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
