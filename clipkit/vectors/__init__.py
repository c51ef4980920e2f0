"""Embeddings on disk (`Vectors`), and FAISS indexes over them (`Stored`)."""

from clipkit.vectors.folder import KINDS, Vectors
from clipkit.vectors.stored import Stored

__all__ = ["KINDS", "Stored", "Vectors"]
