"""Embeddings on disk, in the layout that clip-retrieval and autofaiss read, and FAISS indexes over them.

VECTORS/img_emb/img_emb_0.npy · text_emb/text_emb_0.npy (float16 [n, D], unit rows) · metadata/metadata_0.parquet
VECTORS/vectors.json: model, source, counts.    Row i of the three files of a part is the same sample.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError

ABOUT = "vectors.json"
INDEX_ABOUT = "index.json"


class Writer:
    """Writes a vectors folder part by part beside its place; `finish` renames it into place."""

    def __init__(self, place: Path) -> None:
        self.place, self.parts, self.count, self.texts = place, 0, 0, False
        refuse_existing(place)
        self.work = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        for name in ("img_emb", "text_emb", "metadata"):
            (self.work / name).mkdir(parents=True)

    def part(self, image: np.ndarray, text: np.ndarray | None, records: list[dict[str, Any]]) -> None:
        """Add rows: image [n, D], text [n, D] or None where the source has no captions, and a record for each."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        assert len(image) == len(records), (len(image), len(records))
        assert self.parts == 0 or self.texts == (text is not None), "texts are in all parts or in none"
        self.texts = text is not None
        number = self.parts
        np.save(self.work / "img_emb" / f"img_emb_{number}.npy", image.astype(np.float16))
        if text is not None:
            np.save(self.work / "text_emb" / f"text_emb_{number}.npy", text.astype(np.float16))
        rows = [{"image_path": record["key"], **{k: v for k, v in record.items() if k != "key"}} for record in records]
        pq.write_table(pa.Table.from_pylist(rows), self.work / "metadata" / f"metadata_{number}.parquet")
        self.parts += 1
        self.count += len(records)

    def finish(self, about: dict[str, Any]) -> None:
        """Put the folder in its place, with `about` and the counts in vectors.json."""
        facts = {**about, "rows": self.count, "parts": self.parts, "texts": self.texts}
        (self.work / ABOUT).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        place_folder(self.work, self.place)

    def drop(self) -> None:
        """Remove what was written so far."""
        shutil.rmtree(self.work, ignore_errors=True)


def refuse_existing(place: Path) -> None:
    """Raises: UserError when something lies where a folder is to be written."""
    if place.exists() and (place.is_file() or any(place.iterdir())):
        raise UserError(f"{place}: already exists and is left as it is; remove it, or give another --out")
    place.parent.mkdir(parents=True, exist_ok=True)


def place_folder(work: Path, place: Path) -> None:
    """Rename a finished folder into its place, where at most an empty folder lies."""
    if place.is_dir():
        place.rmdir()
    work.rename(place)


def about(folder: Path, name: str = ABOUT) -> dict[str, Any]:
    """What a vectors or index folder says of itself.

    Raises: UserError when it is not one.
    """
    made_by = "clipkit index VECTORS --out INDEX" if name == INDEX_ABOUT else "clipkit embed MODEL SOURCE --out VECTORS"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; `{made_by}` makes one")
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no {name}; `{made_by}` makes a folder that does") from None
    except ValueError as error:
        raise StorageError(f"{folder / name}: damaged ({error})") from None


def parts(folder: Path, kind: str) -> Iterator[np.ndarray]:
    """The arrays [n, D] of `img_emb` or `text_emb`, part by part, mapped and not loaded."""
    for path in sorted((folder / kind).glob(f"{kind}_*.npy"), key=lambda p: int(p.stem.rpartition("_")[2])):
        yield np.load(path, mmap_mode="r", allow_pickle=False)


def records(folder: Path) -> Any:
    """The metadata of all rows as one pyarrow table.

    Raises: UserError when it is not there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((folder / "metadata").glob("*.parquet"), key=lambda p: int(p.stem.rpartition("_")[2]))
    if not files:
        raise UserError(f"{folder}: metadata/ is missing or empty, and says what each row is; make the folder again")
    return pa.concat_tables([pq.read_table(path) for path in files], promote_options="default")


def flat_index(rows: np.ndarray) -> Any:
    """An exact inner-product index over rows [n, D]."""
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    add(index, rows)
    return index


def add(index: Any, rows: np.ndarray) -> None:
    """Add rows [n, D] of any float type to an index."""
    index.add(np.ascontiguousarray(rows, np.float32))


def search(index: Any, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores float32, rows int64) [Q, k] of the nearest to queries [Q, D], best first; -1 fills up."""
    return index.search(np.ascontiguousarray(queries, np.float32), k)


def write_index(index: Any, path: Path) -> None:
    """Write a FAISS index file."""
    import faiss

    faiss.write_index(index, str(path))


def read_index(path: Path) -> Any:
    """A FAISS index from its file.

    Raises: StorageError when it is damaged.
    """
    import faiss

    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise StorageError(f"{path}: not a readable FAISS index ({str(error).splitlines()[0]})") from None
