"""Shards whose facts are known, vectors made by hand for them, and a model in a run folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit import shards
from clipkit.data import Settings, open_stream
from clipkit.types import Preprocess
from tests.samples import encoded, shape, toy_tokenizer, write_shard

BROKEN = b"\xff\xd8\xff\xe0 not a jpeg"


def one(
    number: int, width: int = 48, height: int = 40, caption: bytes | str | None = None, facts: Any = None,
    picture: bytes | None = None, of: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Sample `number`: a picture of this size (that of sample `of`), a caption and a `.json`; None leaves them out."""
    image = encoded(shape(number if of is None else of, width, height)[0])
    made: dict[str, Any] = {"__key__": f"{number:05d}", "jpg": image if picture is None else picture}
    if caption is not None:
        made["txt"] = caption.encode() if isinstance(caption, str) else caption
    if facts is not None:
        made["json"] = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    return made


def write(folder: Path, *parts: list[dict[str, Any]]) -> str:
    """A folder of shards 000.tar, 001.tar, ... of these samples."""
    folder.mkdir(parents=True)
    for i, samples in enumerate(parts):
        write_shard(folder / f"{i:03d}.tar", samples)
    return str(folder)


def kept(selection: str | Path) -> list[str]:
    """The keys that a selection keeps."""
    return pq.read_table(selection).column("key").to_pylist()


def trained_on(source: str, selection: str | Path, caption: str = "txt") -> list[str]:
    """The keys of one epoch of training on a selection, sorted."""
    count = len(shards.Shards(source, shards.members_for(caption), str(selection)))
    cfg = Settings(train=source, select=str(selection), caption=caption, batch=count, workers=0)
    stream = open_stream(cfg, toy_tokenizer(), Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 0, 0, 1)
    batch = next(iter(stream.batches(0, 1)))
    assert not batch.replaced
    return sorted(batch.keys)


def vectors_of(
    source: str, out: Path, image: Any, text: Any = None, numbers: list[int] | None = None, **about: Any
) -> str:
    """A vectors folder as `clipkit embed` writes it, with these rows for the samples `numbers` (or all)."""
    held = shards.Shards(source)
    numbers = list(range(len(held))) if numbers is None else numbers
    for name in ("img_emb", "metadata") + (() if text is None else ("text_emb",)):
        (out / name).mkdir(parents=True)
    for i, part in enumerate(part for part in (numbers[:2], numbers[2:]) if part):
        at = [numbers.index(number) for number in part]
        np.save(out / f"img_emb/img_emb_{i:06d}.npy", np.asarray(image)[at].astype(np.float16))
        if text is not None:
            np.save(out / f"text_emb/text_emb_{i:06d}.npy", np.asarray(text)[at].astype(np.float16))
        records = [{**shards.record(held, number), "width": 40, "height": 30} for number in part]
        pq.write_table(pa.Table.from_pylist(records), out / f"metadata/metadata_{i:06d}.parquet")
    facts = {"model": "m", "source": source, "caption": "txt", "left_out": {}, "rows": len(numbers), **about}
    (out / "vectors.json").write_text(json.dumps(facts))
    return str(out)


def angles(*degrees: float) -> np.ndarray:
    """Unit rows [n, 2] at these angles."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1)
