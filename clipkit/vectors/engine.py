"""FAISS, as clipkit uses it: one index file, built in bounded memory, and searched with settings given by the call.

`IVF64,PQ128x4fs,Refine(SQ8)` scans the 4-bit codes of all rows and ranks the best of them again by 8-bit ones: nothing
is probed, so that words, which lie apart from all pictures, find as well as pictures do (LOG.md has the table).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError


@dataclass(frozen=True)
class Knobs:
    """How an index is searched: lists that are probed (IVF), rows that are ranked again by finer codes, or neighbours
    that a graph keeps (HNSW); None where it has no such thing."""

    nprobe: int | None = None
    candidates: int | None = None
    ef: int | None = None

    def as_dict(self) -> dict[str, int]:
        """For JSON, without what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def factor(self, k: int) -> float:
        """How many times k rows are ranked again, at least four times as many as are wanted."""
        return max((self.candidates or 0) / max(k, 1), 4.0)


class Engine:
    """A FAISS index of unit rows by inner product: search it, with or without a choice of rows; read rows back."""

    def __init__(self, index: Any, knobs: Knobs = Knobs()) -> None:  # noqa: B008 (frozen)
        self.index, self.knobs = index, knobs
        self._base, self._fine = _taken_apart(index)

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def width(self) -> int:
        """D."""
        return self.index.d

    @property
    def lists(self) -> int | None:
        """How many lists it has; None where it has none."""
        return getattr(self._base, "nlist", None)

    def with_knobs(self, **changes: int | None) -> "Engine":
        """The same index searched otherwise."""
        return Engine(self.index, replace(self.knobs, **changes))

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(scores float32, numbers int64) [Q, k] of the nearest rows to queries [Q, D], best first, -1 where there are
        fewer; `allowed` (bool [n]) says which may be found.

        All lists are probed where rows are chosen: what is left may lie in any of them.
        """
        chosen = None if allowed is None else _selector(allowed)
        queries = np.ascontiguousarray(queries, np.float32)
        return self.index.search(queries, min(k, len(self)), params=self._parameters(k, chosen))

    def search_among(self, queries: np.ndarray, k: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, but with each of the rows of these numbers, by the finest codes there are."""
        rows = self.rows(numbers)
        scores = np.ascontiguousarray(queries, np.float32) @ rows.T
        k = min(k, len(numbers))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, 1), np.asarray(numbers, np.int64)[best]

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, float32 [n, D], as well as the codes keep them."""
        if not len(numbers):
            return np.empty((0, self.width), np.float32)
        holder = self._fine if self._fine is not None else self._base
        if hasattr(holder, "make_direct_map") and hasattr(holder, "nlist"):
            holder.make_direct_map(True)
        return holder.reconstruct_batch(np.ascontiguousarray(numbers, np.int64))

    def _parameters(self, k: int, chosen: Any) -> Any:
        import faiss

        knobs = self.knobs
        more = {"sel": chosen} if chosen is not None else {}
        base: Any = None
        if self.lists is not None:
            nprobe = self.lists if chosen is not None else min(knobs.nprobe or self.lists, self.lists)
            base = faiss.SearchParametersIVF(nprobe=nprobe, **more)
        elif hasattr(self._base, "hnsw"):
            base = faiss.SearchParametersHNSW(efSearch=max(knobs.ef or 16, k), **more)
        elif more:
            base = faiss.SearchParameters(**more)
        if self._fine is None:
            return base
        return faiss.IndexRefineSearchParameters(k_factor=knobs.factor(k), base_index_params=base)


def _taken_apart(index: Any) -> tuple[Any, Any]:
    """(what is scanned, what ranks again, or None)."""
    import faiss

    if isinstance(index, faiss.IndexRefine):
        return faiss.downcast_index(index.base_index), faiss.downcast_index(index.refine_index)
    return index, None


def _selector(allowed: np.ndarray) -> Any:
    import faiss

    return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def make(factory: str, width: int, sample: np.ndarray) -> Any:
    """A FAISS index by its factory string, trained on a sample of rows [n, D].

    Raises: UserError when FAISS knows no such factory.
    """
    import faiss

    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(f"--factory {factory}: {str(error).strip().splitlines()[-1]}") from None
    if not index.is_trained:
        index.train(np.ascontiguousarray(sample, np.float32))
    return index


def fill(index: Any, blocks: Iterable[tuple[int, np.ndarray]]) -> None:
    """Add rows, block by block."""
    for _, rows in blocks:
        index.add(np.ascontiguousarray(rows, np.float32))


def write(index: Any, path: Path) -> None:
    """Write a FAISS index file.

    Raises: StorageError when it cannot be written.
    """
    import faiss

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise StorageError(f"{path}: cannot be written ({str(error).strip().splitlines()[-1]})") from None


def read(path: Path, mapped: bool = True) -> Any:
    """A FAISS index from its file; `mapped` pages come from the disk when they are first touched, and all processes of
    a machine share them.

    Raises: StorageError when it is missing or damaged.
    """
    import faiss

    if not path.is_file():
        raise StorageError(f"{path}: missing; build the index again")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise StorageError(f"{path}: not a readable FAISS index ({str(error).strip().splitlines()[-1]})") from None
