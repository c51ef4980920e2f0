"""`clipkit embed MODEL SOURCE --out VECTORS`: the embeddings of a collection, on disk."""

from pathlib import Path
from typing import Any

import numpy as np

from clipkit import models, shards, vectors
from clipkit.errors import BadData
from clipkit.log import Progress, say

PART = 100_000


def embed(
    model: str, source: str, out: str, caption: str = "txt", workers: int = 0, max_bad: float = 0.01, part: int = PART
) -> dict[str, Any]:
    """Embed all pictures of a source (shards, a folder, a file), and their captions where there are any, into `out`.

    Gives the facts of vectors.json. Unreadable pictures are left out, counted and told.
    Raises: UserError when the source or the model is not to be had or `out` exists; BadData above `max_bad`.
    """
    place = Path(out)
    vectors.refuse_existing(place)
    collection = shards.open_source(source)
    if isinstance(collection, shards.Shards):
        shards.members_for(caption)
    loaded = models.load(model)
    writer = vectors.Writer(place)
    left_out: dict[str, int] = {}
    try:
        with Progress("embed", len(collection)) as bar:
            for start in range(0, len(collection), part):
                numbers = range(start, min(start + part, len(collection)))
                _part(loaded, collection, numbers, caption, workers, writer, left_out, bar)
                _bound(left_out, numbers.stop, max_bad, source)
        about = {"model": model, "source": source, "caption": caption, "left_out": left_out}
        writer.finish({**about, "model": str(Path(model).resolve()) if Path(model).exists() else model})
    finally:
        writer.drop()
    if left_out:
        say(f"{source}: left out {', '.join(f'{reason}: {count}' for reason, count in sorted(left_out.items()))}")
    return vectors.about(place)


def _part(
    model: models.DualEncoder,
    source: shards.Shards | shards.Folder,
    numbers: range,
    caption: str,
    workers: int,
    writer: vectors.Writer,
    left_out: dict[str, int],
    bar: Progress,
) -> None:
    rows: list[np.ndarray] = []
    kept: list[int] = []
    for good, embedded, bad in models.embed_images(model, source, numbers, workers=workers):
        rows.append(embedded.numpy())
        kept += good
        for reason in bad.values():
            left_out[reason] = left_out.get(reason, 0) + 1
        bar.update(numbers.start + len(kept))
    records = [source.record(number, caption) for number in kept]
    captions = [record["caption"] for record in records]
    if writer.with_text is None:  # decided once: row i of every part must be the same sample in all files
        writer.with_text = any(captions)
    text = models.embed_texts(model, captions).numpy() if writer.with_text else None
    if kept:
        writer.part(np.concatenate(rows), text, records)


def _bound(left_out: dict[str, int], seen: int, max_bad: float, source: str) -> None:
    bad = sum(left_out.values())
    if bad > max_bad * seen and (bad >= 10 or bad == seen):
        what = ", ".join(f"{reason}: {count}" for reason, count in sorted(left_out.items()))
        raise BadData(
            f"{source}: {bad} of {seen} pictures are unreadable ({what}); raise --max-bad to go on without them"
        )
