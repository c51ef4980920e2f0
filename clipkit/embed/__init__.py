"""`clipkit embed MODEL SOURCE --out VECTORS`: the embeddings of a collection, on disk."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from clipkit import models, shards, vectors
from clipkit.errors import BadData, told
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
    with_text = _has_captions(collection, caption)
    lost = Counter(collection.lost if isinstance(collection, shards.Shards) else {})
    _bound(lost, len(collection) + lost.total(), max_bad, source)
    left_out: Counter[str] = Counter()
    writer = vectors.Writer(place)
    try:
        with Progress("embed", len(collection)) as bar:
            for start in range(0, len(collection), part):
                numbers = range(start, min(start + part, len(collection)))
                kept, image = _pictures(loaded, collection, numbers, workers, left_out, bar)
                _bound(left_out, numbers.stop, max_bad, source)
                records = [shards.record(collection, number, caption) for number in kept]
                captions = [record["caption"] for record in records] if with_text else None
                if kept:
                    writer.part(image, models.embed_texts(loaded, captions).numpy() if captions else None, records)
        where = str(Path(model).resolve()) if Path(model).exists() else model
        writer.finish({"model": where, "source": source, "caption": caption, "left_out": dict(lost + left_out)})
    finally:
        writer.drop()
    if lost + left_out:
        say(f"{source}: left out {told(lost + left_out)}")
    return vectors.about(place)


def _has_captions(collection: shards.Shards | shards.Folder, caption: str) -> bool:
    """Is there a caption among the first hundred? Decided once: row i must be the same sample in all files."""
    return any(shards.record(collection, number, caption)["caption"] for number in range(min(100, len(collection))))


def _pictures(
    model: models.DualEncoder,
    source: models.Pictures,
    numbers: range,
    workers: int,
    left_out: Counter[str],
    bar: Progress,
) -> tuple[list[int], np.ndarray]:
    """(numbers that could be read, their embeddings [n, D])."""
    rows: list[np.ndarray] = []
    kept: list[int] = []
    for good, embedded, bad in models.embed_images(model, source, numbers, workers=workers):
        rows.append(embedded.numpy())
        kept += good
        left_out.update(bad.values())
        bar.update(numbers.start + len(kept))
    return kept, np.concatenate(rows)


def _bound(left_out: Counter[str], seen: int, max_bad: float, source: str) -> None:
    bad = left_out.total()
    if bad > max_bad * seen and (bad >= 10 or bad == seen):
        raise BadData(f"{source}: {bad} of {seen} pictures are unreadable ({told(left_out)}); see --max-bad")
