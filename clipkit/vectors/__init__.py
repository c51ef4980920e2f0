"""Embeddings on disk (`Vectors`), and FAISS indexes over them (`Stored`)."""

from clipkit.vectors.folder import KINDS, Vectors
from clipkit.vectors.old import (
    ABOUT,
    INDEX_ABOUT,
    Writer,
    about,
    add,
    flat_index,
    parts,
    place_folder,
    read_index,
    records,
    refuse_existing,
    search,
    write_index,
)
from clipkit.vectors.stored import Stored

__all__ = [
    "ABOUT", "INDEX_ABOUT", "KINDS", "Stored", "Vectors", "Writer", "about", "add", "flat_index", "parts",
    "place_folder", "read_index", "records", "refuse_existing", "search", "write_index",
]  # fmt: skip
