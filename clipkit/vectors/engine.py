"""FAISS, as clipkit uses it: one index file, built in bounded memory, and searched with settings given by the call.

`IVF64,PQ128x4fs,Refine(SQ8)` scans the 4-bit codes of all rows and ranks the best of them again by 8-bit ones: nothing
is probed, so that words, which lie apart from all pictures, find as well as pictures do (LOG.md has the table).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError

EXAMPLE = "IVF64,PQ128x4fs,Refine(SQ8)"
TRAINED_ON, A_LIST = 65_536, 64
"""Rows that an index is trained on, at the least; and for each list."""
Found = tuple[np.ndarray, np.ndarray]
"""(scores float32, numbers int64) [Q, k], best first; -inf and -1 where there are fewer."""


@dataclass(frozen=True)
class Knobs:
    """How an index is searched: lists that are probed (IVF), rows that are ranked again by finer codes, or neighbours
    that a graph keeps (HNSW); None where it has no such thing. `k` is the number of answers they were measured for."""

    nprobe: int | None = None
    candidates: int | None = None
    ef: int | None = None
    k: int = 10

    def as_dict(self) -> dict[str, int]:
        """For JSON, without what is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def ranked(self, k: int, share: float = 1.0) -> int:
        """How many rows are ranked again for k answers among a share of all: as the square root of k and of 1 / share,
        because answers beyond the first lie closer together, and at least four times as many as are wanted."""
        return ceil(max((self.candidates or 0) * (max(k / self.k, 1) / share) ** 0.5, 4 * k))


class Engine:
    """A FAISS index of unit rows by inner product: search it, with or without a choice of rows; read rows back."""

    def __init__(self, index: Any, knobs: Knobs = Knobs()) -> None:  # noqa: B008 (frozen)
        self.index, self.knobs = index, knobs
        self._base, self._inner, self._fine = _taken_apart(index)
        self._mapping = Lock()

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def width(self) -> int:
        """D."""
        return self.index.d

    @property
    def lists(self) -> int | None:
        """How many lists it has; None where it has none."""
        return getattr(self._inner, "nlist", None)

    @property
    def graph(self) -> bool:
        """Is it a graph of neighbours (HNSW)?"""
        return hasattr(self._inner, "hnsw")

    @property
    def ranks(self) -> bool:
        """Does it rank rows again by finer codes?"""
        return self._fine is not None

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, knobs: Knobs | None = None
    ) -> Found:
        """The nearest rows to queries [Q, D], k or as many as there are; `allowed` (bool [n]) says which may be found,
        `knobs` how to search instead of its own.

        The fewer may be found, the more lists are probed and the more neighbours kept: what is left may lie anywhere.
        """
        count = len(self) if allowed is None else max(int(np.count_nonzero(allowed)), 1)
        params = self._parameters(k, knobs or self.knobs, _chosen(allowed), count)
        return self._asked(self.index, queries, k, params)

    def finest(self, queries: np.ndarray, k: int, allowed: np.ndarray) -> Found:
        """As `search`, but each allowed row is compared, by the finest codes there are."""
        faiss = _faiss()
        holder, more = self._holder(), _chosen(allowed)
        scanned = self._inner if holder is self._base else holder
        params: Any = faiss.SearchParameters(**more)
        if hasattr(scanned, "nlist"):
            params = faiss.SearchParametersIVF(nprobe=scanned.nlist, **more)
        if scanned is not holder:
            params = faiss.SearchParametersPreTransform(index_params=params)
        return self._asked(holder, queries, k, params)

    def _asked(self, index: Any, queries: np.ndarray, k: int, params: Any) -> Found:
        queries = np.ascontiguousarray(queries, np.float32)
        with _threads(len(queries)):
            scores, numbers = index.search(queries, min(k, len(self)), params=params)
        scores[numbers < 0] = -np.inf
        return scores, numbers

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, float32 [n, D], as well as the codes keep them."""
        if not len(numbers):
            return np.empty((0, self.width), np.float32)
        holder = self._holder()
        scanned = self._inner if holder is self._base else holder
        if hasattr(scanned, "nlist"):
            with self._mapping:
                scanned.make_direct_map(True)
        return holder.reconstruct_batch(np.ascontiguousarray(numbers, np.int64))

    def _holder(self) -> Any:
        """What holds the finest codes of all rows."""
        faiss = _faiss()

        if self._fine is not None:
            return self._fine
        return faiss.downcast_index(self._inner.storage) if self.graph else self._base

    def _parameters(self, k: int, knobs: Knobs, chosen: dict[str, Any], count: int) -> Any:
        faiss, share = _faiss(), count / len(self)
        base: Any = None
        if self.lists is not None:
            nprobe = min(ceil((knobs.nprobe or self.lists) / share), self.lists)
            base = faiss.SearchParametersIVF(nprobe=nprobe, **chosen)
        elif self.graph:
            base = faiss.SearchParametersHNSW(efSearch=max(min(ceil((knobs.ef or 16) / share), len(self)), k), **chosen)
        elif chosen:
            base = faiss.SearchParameters(**chosen)
        if base is not None and self._inner is not self._base:
            base = faiss.SearchParametersPreTransform(index_params=base)
        if self._fine is None:
            return base
        ranked = max(min(knobs.ranked(k, share), count), k)
        return faiss.IndexRefineSearchParameters(k_factor=ranked / k, base_index_params=base)


def _faiss() -> Any:
    """faiss, loaded when it is first wanted; its stubs know no search parameters."""
    import faiss

    return faiss


def _taken_apart(index: Any) -> tuple[Any, Any, Any]:
    """(what is scanned, the same behind its transforms, what ranks again or None)."""
    faiss = _faiss()

    fine = None
    if isinstance(index, faiss.IndexRefine):
        index, fine = faiss.downcast_index(index.base_index), faiss.downcast_index(index.refine_index)
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    return index, inner, fine


def _chosen(allowed: np.ndarray | None) -> dict[str, Any]:
    faiss = _faiss()

    return {} if allowed is None else {"sel": faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))}


@contextmanager
def _threads(queries: int) -> Iterator[None]:
    """No more threads than queries: one query shared between threads costs more than it gains. OpenMP keeps the number
    for each thread of ours, so that others are not touched."""
    faiss = _faiss()

    usual = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(min(usual, queries), 1))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(usual)


def make(factory: str, width: int, draw: Callable[[int], np.ndarray]) -> Any:
    """A FAISS index by its factory string, trained on the rows [up to n, D] that `draw(n)` gives.

    Raises: UserError when FAISS knows no such factory, or it cannot be trained on so few rows or of this width.
    """
    faiss = _faiss()

    rows = 0
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            lists = getattr(_taken_apart(index)[1], "nlist", 0)
            sample = np.ascontiguousarray(draw(max(TRAINED_ON, A_LIST * lists)), np.float32)
            rows = len(sample)
            index.train(sample)
    except RuntimeError as error:
        told = f"FAISS cannot train it with {rows} rows of width {width} ({_last_line(error)})"
        known = f"FAISS knows no such index for width {width}; auto, flat, hnsw or one such as {EXAMPLE} is needed"
        raise UserError(f"--engine {factory}: {told if rows else known}") from None
    return index


def fill(index: Any, blocks: Iterable[tuple[int, np.ndarray]]) -> None:
    """Add rows, block by block."""
    for _, rows in blocks:
        index.add(np.ascontiguousarray(rows, np.float32))


def settle(index: Any, knobs: Knobs) -> bool:
    """Make the index search by these knobs where nobody gives any, as FAISS alone does when it has read the file; says
    whether that changes anything."""
    _, inner, fine = _taken_apart(index)
    wanted = [(inner, "nprobe", min(knobs.nprobe or inner.nlist, inner.nlist))] if hasattr(inner, "nlist") else []
    wanted += [(inner.hnsw, "efSearch", knobs.ef)] if hasattr(inner, "hnsw") and knobs.ef else []
    wanted += [(index, "k_factor", knobs.ranked(knobs.k) / knobs.k)] if fine is not None else []
    changed = [(where, name, value) for where, name, value in wanted if getattr(where, name) != value]
    for where, name, value in changed:
        setattr(where, name, value)
    return bool(changed)


def settle_file(path: Path, knobs: Knobs) -> None:
    """`settle` the index in a file; another file takes its place at once."""
    index = read(path)
    if settle(index, knobs):
        beside = path.with_name(f".{path.name}.tmp")
        write(index, beside)
        beside.replace(path)


def write(index: Any, path: Path) -> None:
    """Write a FAISS index file.

    Raises: StorageError when it cannot be written.
    """
    faiss = _faiss()

    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise StorageError(f"{path}: cannot be written ({_last_line(error)})") from None


def read(path: Path, mapped: bool = True) -> Any:
    """A FAISS index from its file; `mapped` pages come from the disk when they are first touched, and all processes of
    a machine share them.

    Raises: StorageError when it is missing or damaged.
    """
    faiss = _faiss()

    if not path.is_file():
        raise StorageError(f"{path}: missing; build the index again")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise StorageError(f"{path}: not a readable FAISS index ({_last_line(error)})") from None


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1]
