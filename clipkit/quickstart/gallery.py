"""What the quickstart's report shows beside its curves and scores: pictures with the captions found, and searches."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.config import write_atomic
from clipkit.vectors import Vectors, exact

Search = tuple[str, list[dict[str, Any]]]
SHOWN = 6
PLACE = ("shard", "offset", "size")
"""Where the bytes of a picture lie."""


def write(path: Path, folder: Path, searches: list[Search]) -> Path:
    """Write the gallery that `clipkit report --gallery` reads, of a vectors folder with captions and of (query, hits)
    of some searches; gives its path."""
    found = {
        "title": "Held-out pictures, and the nearest of all held-out captions",
        "pictures": [_found(item) for item in captions_found(folder)],
    }
    asked = [{"title": f"Search: {query}", "pictures": [_hit(hit) for hit in hits]} for query, hits in searches]
    gallery = {
        "title": "clipkit quickstart",
        "text": "A small model, trained on OpenMoji and tested on combinations it never saw.",
        "note": "Pictures: OpenMoji, CC BY-SA 4.0.",
        "rows": [found, *asked],
    }
    write_atomic(path, json.dumps(gallery))
    return path


def captions_found(folder: Path, shown: int = SHOWN) -> list[dict[str, Any]]:
    """For `shown` pictures spread over a vectors folder: {record, captions: the three nearest of all captions}."""
    rows = Vectors(folder)
    records = [record for table in rows.tables((*PLACE, "caption")) for record in table.to_pylist()]
    chosen = np.linspace(0, len(rows) - 1, shown).astype(int)
    _, near = exact.nearest(rows.take("image", chosen), rows.blocks("text"), 3)
    return [
        {"record": records[i], "captions": [records[j]["caption"] for j in found if j >= 0]}
        for i, found in zip(chosen.tolist(), near.tolist(), strict=True)
    ]


def _found(item: dict[str, Any]) -> dict[str, Any]:
    own = item["record"]["caption"]
    return _shown(item["record"], [(text, text == own) for text in item["captions"]])


def _hit(hit: dict[str, Any]) -> dict[str, Any]:
    return _shown(hit, [(f"{hit['score']:.3f} {hit['caption']}", None)])


def _shown(record: dict[str, Any], lines: list[tuple[str, bool | None]]) -> dict[str, Any]:
    """A picture of the gallery, by where its bytes lie, and the lines under it."""
    where = {key: record[key] for key in PLACE}
    return {"where": where, "alt": record["caption"], "lines": lines}
