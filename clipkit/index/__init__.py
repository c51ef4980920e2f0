"""`clipkit index VECTORS --out INDEX`: a FAISS index over a vectors folder, with what it takes to read its answers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from clipkit import vectors
from clipkit.errors import UserError


def build(source: str, out: str) -> dict[str, Any]:
    """Build an exact index of the pictures of `source` into the folder `out`; gives the facts of its index.json.

    The folder holds image.index (and text.index where there are captions), the metadata and index.json.
    Raises: UserError when `source` is no vectors folder or `out` exists.
    """
    folder, place = Path(source), Path(out)
    about = vectors.about(folder)
    vectors.refuse_existing(place)
    table = vectors.records(folder)
    work = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    work.mkdir(parents=True)
    try:
        rows = {
            name: _one(folder, kind, work / f"{name}.index")
            for name, kind in (("image", "img_emb"), ("text", "text_emb"))
        }
        if rows["image"] != len(table):
            raise UserError(f"{folder}: {rows['image']} embeddings but metadata of {len(table)}; embed again")
        shutil.copytree(folder / "metadata", work / "metadata")
        facts = {"model": about["model"], "source": about["source"], "kind": "Flat", "rows": rows["image"]}
        (work / vectors.INDEX_ABOUT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        vectors.place_folder(work, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return facts


def _one(folder: Path, kind: str, path: Path) -> int:
    """Write the index of one kind of embeddings, adding part by part; the number of rows."""
    index: Any = None
    for rows in vectors.parts(folder, kind):
        if index is None:
            index = vectors.flat_index(rows)
        else:
            vectors.add(index, rows)
    if index is None:
        if kind == "img_emb":
            raise UserError(f"{folder}: img_emb/ holds no embeddings; embed again")
        return 0
    vectors.write_index(index, path)
    return index.ntotal
