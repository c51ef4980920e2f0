"""A vectors folder: embeddings on disk, in the layout that clip-retrieval and autofaiss read and write.

VECTORS/img_emb/img_emb_000000.npy · text_emb/text_emb_000000.npy: float16 or float32 [n, D], unit rows; a row of zeros
is one that is not there, such as that of a picture without a caption
VECTORS/metadata/metadata_000000.parquet: what each row is; row i of the three files of a part is the same sample
VECTORS/vectors.json: model, source and counts, written last; clip-retrieval writes none
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipkit.errors import StorageError, UserError

ABOUT = "vectors.json"
PLAN = "embed.json"
"""What is being embedded, written first: where it lies without ABOUT, the work was cut short."""
KINDS = {"image": "img_emb", "text": "text_emb"}
"""What a row is of, and the folder of such rows."""
BLOCK = 1 << 15  # rows in memory at once: 64 MB at a width of 512
SLACK = 0.02
"""By how much a row's length may miss 1: float16 costs 0.0005."""
MADE_BY = "`clipkit embed MODEL SOURCE --out VECTORS` makes one"


class Vectors:
    """A vectors folder, opened: rows by number, read when they are asked for. `about` is its vectors.json, empty for a
    folder that clip-retrieval has made; `kinds` are those of `image` and `text` that it holds.

    Raises: UserError when it is none, is not finished, or its files disagree; StorageError when one is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = _about(self.folder)
        self._files = {kind: _numbered(self.folder / name, ".npy") for kind, name in KINDS.items()}
        self.kinds = tuple(kind for kind, files in self._files.items() if files)
        if not self.kinds:
            raise UserError(f"{folder}: neither img_emb/ nor text_emb/ holds a .npy; {MADE_BY}")
        self._parts = {kind: [_part(path) for path in self._files[kind]] for kind in self.kinds}
        self._check()

    def _check(self) -> None:
        first = self._parts[self.kinds[0]][0]
        for part in (part for parts in self._parts.values() for part in parts):
            wanted = len(part.shape) == 2 and part.dtype in (np.float16, np.float32) and part.by_rows
            if not wanted or part.shape[1] != first.shape[1]:
                order = "" if part.by_rows else ", column by column"
                raise UserError(
                    f"{part.path}: float16 or float32 [n, {first.shape[-1]}] row by row is needed, "
                    f"got {part.dtype} {list(part.shape)}{order}"
                )
        numbers = [set(map(_number, self._files[kind])) for kind in self.kinds]
        if lacking := set.union(*numbers) - set.intersection(*numbers):
            raise UserError(f"{self.folder}: img_emb/ or text_emb/ lacks the part {min(lacking)}; embed again")
        lengths = {kind: [len(part) for part in parts] for kind, parts in self._parts.items()}
        if len({tuple(each) for each in lengths.values()}) > 1:
            raise UserError(f"{self.folder}: the parts of img_emb/ and text_emb/ have other numbers of rows: {lengths}")
        said = self.about.get("rows")
        if said is not None and said != len(self):
            raise StorageError(f"{self.folder}: {len(self)} rows, {said} by its {ABOUT}; embed again")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def width(self) -> int:
        """D."""
        return self._parts[self.kinds[0]][0].shape[1]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self._parts[self.kinds[0]]])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows of one kind on disk."""
        return sum(part.nbytes for part in self._parts[self.kinds[0]])

    def blocks(
        self, kind: str, start: int = 0, stop: int | None = None, rows: int = BLOCK
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, float32 [up to `rows`, D]) of the rows start..stop-1 in their order.

        Raises: UserError when a row's length is not about 1, or it is not finite.
        """
        stop = len(self) if stop is None else stop
        for first in range(start, stop, rows):
            yield first, self.take(kind, np.arange(first, min(first + rows, stop)))

    def take(self, kind: str, numbers: np.ndarray) -> np.ndarray:
        """The rows with these numbers, float32 [n, D].

        Raises: UserError when a row's length is not about 1, or it is not finite.
        """
        numbers = np.asarray(numbers, np.int64)
        out = np.empty((len(numbers), self.width), np.float32)
        which = np.searchsorted(self._ends, numbers, side="right")
        for i in np.unique(which).tolist():
            here, part = np.flatnonzero(which == i), self._parts[kind][i]
            rows = _read(part, numbers[here] - (int(self._ends[i]) - len(part)))
            out[_run(here)] = torch.from_numpy(rows).float().numpy()  # on all threads
        self._refuse_other_lengths(kind, numbers, out)
        return out

    def _refuse_other_lengths(self, kind: str, numbers: np.ndarray, rows: np.ndarray) -> None:
        lengths = torch.linalg.vector_norm(torch.from_numpy(rows), dim=1).numpy()
        bad = np.flatnonzero(~((np.abs(lengths - 1) <= SLACK) | (lengths == 0)))  # written so that NaN is bad
        if len(bad):
            raise UserError(
                f"{self.folder}: row {int(numbers[bad[0]])} of {KINDS[kind]}/ has the length {lengths[bad[0]]:.4g}; "
                "rows of length 1 are needed: embed again, or divide each row by its length"
            )

    def sample(self, kind: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(numbers ascending, float32 [up to count, D]) of rows drawn evenly from all."""
        count = min(count, len(self))
        numbers = np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))
        return numbers, self.take(kind, numbers)

    @cached_property
    def metadata_files(self) -> list[Path]:
        """The Parquet files of what the rows are, in the order of the rows.

        Raises: UserError when they are not there or tell of another number of rows.
        """
        import pyarrow.parquet as pq

        files = _numbered(self.folder / "metadata", ".parquet")
        if not files:
            raise UserError(f"{self.folder}: metadata/ is missing or empty, and says what each row is; embed again")
        count = sum(pq.read_metadata(path).num_rows for path in files)
        if count != len(self):
            raise UserError(f"{self.folder}: {len(self)} embeddings but metadata of {count}; embed again")
        return files

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """The metadata as pyarrow tables, one a file, in the order of the rows."""
        import pyarrow.parquet as pq

        for path in self.metadata_files:
            there = pq.read_schema(path).names
            yield pq.read_table(path, columns=None if columns is None else [name for name in columns if name in there])

    def column(self, name: str) -> list[Any]:
        """One column of the metadata for all rows; None where a file has no such column."""
        found: list[Any] = []
        for table in self.tables([name]):
            found += table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows
        return found


def _about(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {MADE_BY}")
    if not (folder / ABOUT).is_file():
        if (folder / PLAN).is_file():
            raise UserError(f"{folder}: its embedding was cut short; the same `clipkit embed` again goes on with it")
        return {}
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {**found}
    except (ValueError, TypeError) as error:
        raise StorageError(f"{folder / ABOUT}: damaged ({error})") from None


def _numbered(folder: Path, suffix: str) -> list[Path]:
    """The files NAME_NUMBER.suffix of a folder by their number."""
    files = [path for path in folder.glob(f"*_*{suffix}") if path.stem.rpartition("_")[2].isdecimal()]
    return sorted(files, key=_number)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _run(numbers: np.ndarray) -> slice | np.ndarray:
    """Consecutive numbers as a slice, others as they are."""
    whole = numbers[-1] - numbers[0] == len(numbers) - 1 and bool((np.diff(numbers) == 1).all())
    return slice(int(numbers[0]), int(numbers[-1]) + 1) if whole else numbers


@dataclass(frozen=True)
class _Part:
    """What the header of a .npy says: type, shape, where the numbers begin, and whether row follows row."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    by_rows: bool

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of its rows."""
        return len(self) * self.shape[1] * self.dtype.itemsize


def _part(path: Path) -> _Part:
    array = _load(path)
    return _Part(path, array.dtype, array.shape, array.offset, array.flags.c_contiguous)


def _read(part: _Part, numbers: np.ndarray) -> np.ndarray:
    """Rows of a file, read and not mapped: mapped pages would count as memory of ours."""
    out = np.empty((len(numbers), part.shape[1]), part.dtype)
    size = part.shape[1] * part.dtype.itemsize
    runs = np.flatnonzero(np.diff(numbers, prepend=-2) != 1).tolist()  # of consecutive rows
    try:
        with open(part.path, "rb") as file:
            for first, end in pairwise([*runs, len(numbers)]):
                file.seek(part.offset + int(numbers[first]) * size)
                if file.readinto(memoryview(out[first:end]).cast("B")) != (end - first) * size:  # type: ignore[arg-type]
                    raise StorageError(f"{part.path}: cut short; embed again")
    except FileNotFoundError:
        raise StorageError(f"{part.path}: is gone; embed again") from None
    return out


def _load(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise StorageError(f"{path}: not a readable array of numbers ({error})") from None
