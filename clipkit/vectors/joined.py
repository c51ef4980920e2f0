"""Rows of several vectors folders as one, all of them or a choice: what an index is built of and measured against."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import UserError
from clipkit.vectors.folder import BLOCK, KINDS, Vectors

KEPT = "kept.npy"
"""In an index folder: which rows of the joined vectors folders its rows are (int64 [n]); not there: all of them."""


class Rows(ABC):
    """Unit rows of some kinds, by number, and the metadata of each. `folders` says which vectors folders they are of,
    as index.json keeps it, and `kept` (int64 [n], ascending) which of their rows; None: all."""

    kinds: tuple[str, ...]
    width: int
    about: dict[str, Any]
    folders: list[dict[str, Any]]
    kept: np.ndarray | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, float32 [n, D]."""

    @abstractmethod
    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """The metadata as pyarrow tables of at most BLOCK rows, in their order; columns that are not there are left
        out."""

    def blocks(
        self, kind: str, start: int = 0, stop: int | None = None, rows: int = BLOCK
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, float32 [up to `rows`, D]) of the rows start..stop-1 in their order."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, rows):
            yield first, self.take(kind, np.arange(first, min(first + rows, stop)))

    def sample(self, kind: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(numbers ascending, float32 [up to count, D]) of rows drawn evenly from all."""
        count = min(count, len(self))
        numbers = np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))
        return numbers, self.take(kind, numbers)

    def column(self, name: str) -> list[Any]:
        """One column of the metadata for all rows; None where there is no such column."""
        found: list[Any] = []
        for table in self.tables([name]):
            found += table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows
        return found


class Joined(Rows):
    """The rows of vectors folders, one folder after the other; with `kept` those of these numbers, counted anew from 0.
    `kinds` are those that all folders have.

    Raises: UserError when a folder is none, or widths or models differ.
    """

    def __init__(self, folders: Sequence[str | Path], kept: np.ndarray | None = None) -> None:
        self.parts = [Vectors(folder) for folder in folders]
        self.kept, first = kept, self.parts[0]
        self.folder, self.width, self.about = first.folder, first.width, first.about
        self.folders = [{"folder": str(part.folder.resolve()), "rows": len(part)} for part in self.parts]
        for other in self.parts[1:]:
            same_model(first, other)
        self.kinds = tuple(kind for kind in KINDS if all(kind in part.kinds for part in self.parts))
        if not self.kinds:
            told = ", ".join(f"{part.folder} ({', '.join(part.kinds)})" for part in self.parts)
            raise UserError(f"no kind of vectors is in all of the folders: {told}")
        if kept is not None and len(kept) and not 0 <= int(kept[0]) <= int(kept[-1]) < self._ends[-1]:
            raise UserError(f"{self.folder}: of its {self._ends[-1]} rows, numbers up to {kept[-1]} are wanted")

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.kept is None else len(self.kept)

    def take(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, float32 [n, D].

        Raises: UserError when a row's length is not about 1, or it is not finite.
        """
        numbers = np.asarray(numbers, np.int64)
        if self.kept is not None:
            numbers = np.asarray(self.kept[numbers], np.int64)
        which = np.searchsorted(self._ends, numbers, side="right")
        out = np.empty((len(numbers), self.width), np.float32)
        for i in np.unique(which).tolist():
            here, part = which == i, self.parts[i]
            rows = part.take(kind, numbers[here] - (int(self._ends[i]) - len(part)))
            if len(rows) == len(out):  # as most blocks are: copied no second time
                return rows
            out[here] = rows
        return out

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """The metadata as pyarrow tables of at most BLOCK rows."""
        return chosen((path for part in self.parts for path in part.metadata_files), self.kept, columns)


def same_model(one: Any, two: Any) -> None:
    """Make sure that two vectors folders or indexes hold embeddings that may be compared: of one width and, as far as
    both say which, of one model.

    Raises: UserError.
    """
    if one.width != two.width:
        told = f"{two.folder}: width {two.width}, that of {one.folder} is {one.width}"
        raise UserError(f"{told}; embed both with one model")
    mine, other = one.about.get("digest"), two.about.get("digest")
    if mine and other and mine != other:
        raise UserError(
            f"{two.folder}: made by another model ({two.about.get('model')}) than {one.folder} "
            f"({one.about.get('model')}), their rows cannot be compared; embed with one model"
        )


def chosen(files: Iterable[Path], kept: np.ndarray | None, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Parquet files, one after the other, as pyarrow tables of at most BLOCK rows; with `kept` (int64 [n], ascending)
    the rows of these numbers alone; columns that are not there are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            # a file without any of the columns still has its rows
            wanted = None if columns is None else [name for name in columns if name in there] or there[:1]
            for batch in file.iter_batches(BLOCK, columns=wanted):
                table, number = pa.Table.from_batches([batch]), first
                first += table.num_rows
                if kept is not None:
                    low, high = np.searchsorted(kept, [number, first])
                    table = table.take(pa.array(np.asarray(kept[low:high]) - number))
                if table.num_rows:
                    yield table


def write_metadata(source: Rows, folder: Path, first: int = 0) -> int:
    """Write the metadata of all rows as metadata_000000.parquet ..., counted from `first`; gives the number of files.

    Files are copied as they are where all their rows are wanted. The alphabet of the names is the order of the rows:
    clip-retrieval's back end reads them so.
    """
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    number = first
    if isinstance(source, Joined) and source.kept is None:
        for path in (path for part in source.parts for path in part.metadata_files):
            shutil.copyfile(path, folder / metadata_name(number))
            number += 1
    else:
        for table in source.tables():
            pq.write_table(table, folder / metadata_name(number))
            number += 1
    return number - first


def metadata_name(number: int) -> str:
    """The name of a file of metadata."""
    return f"metadata_{number:06d}.parquet"
