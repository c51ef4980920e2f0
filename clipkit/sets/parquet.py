"""Parquet files, as Hugging Face's data sets are made of: pictures inside of them, or their paths."""

import bisect
import glob
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from clipkit import hashing
from clipkit.errors import UserError
from clipkit.sets.files import refuse_missing
from clipkit.sets.folders import SPLITS
from clipkit.sets.samples import About, suggested
from clipkit.sets.tables import CAPTION, LABEL, SPLIT, first_of, image_column, rows_of
from clipkit.sets.versions import versions
from clipkit.shards.cache import Cache
from clipkit.shards.remote import expand, is_remote, size_of

SUFFIX = ".parquet"
AT_ONCE = 64  # pictures that are held in memory


def resolve(pattern: str) -> list[str]:
    """The Parquet files that a path, an address or a glob names, sorted.

    Raises: UserError when there are none.
    """
    if is_remote(pattern):
        found = expand(pattern) if "*" in pattern else [pattern]
    else:
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        found = [name for name in found if Path(name).is_file()]
    if not found:
        raise UserError(f"{pattern}: no such Parquet file")
    return found


def in_folder(folder: Path, split: str | None) -> list[str]:
    """The Parquet files of a split in a folder, sorted: SPLIT/*.parquet, or SPLIT-*.parquet here or in `data`; all of
    them where their names tell no split, or `split` is null; none where there are none.

    Raises: UserError when their names tell other splits.
    """
    found = sorted(path for place in (folder, folder / "data") for path in place.glob(f"*{SUFFIX}"))
    if split is None:
        return [str(path) for path in found]
    if inside := sorted(map(str, (folder / split).glob(f"*{SUFFIX}"))):
        return inside
    known = "|".join(sorted(map(re.escape, {*SPLITS, split}), key=len, reverse=True))
    part = {path: match[1] for path in found if (match := re.match(rf"({known})(?![^-_.])", path.stem))}
    if part and split not in part.values():
        there = ", ".join(sorted(set(part.values())))
        raise UserError(f"{folder}: has no Parquet files of '{split}'; split is one of: {there}")
    return [str(path) for path in found if not part or part.get(path) == split]


class InParquet:
    """The rows of Parquet `files`; a row's columns are its fields.

    The pictures are in the column `image` (null: what Hugging Face's schema says is an image, else by its name): bytes,
    {bytes, path}, or a path beside the file, in `images`, or absolute. Bytes are read a few rows at a time, and other
    columns when they are asked for. Of columns that Hugging Face knows as classes the names are in `about`; their -1
    means no class. With a column `split`, the rows of that split (null: all).
    Remote files are fetched when the first sample is asked for.
    Raises: UserError when a file is missing or damaged, or no column holds pictures.
    """

    def __init__(
        self, files: Sequence[str], images: str | None, split: str | None, label: str | None = None,
        image: str | None = None,
    ) -> None:  # fmt: skip
        self.files, self._images, self._split, self._label, self._wanted = list(files), images, split, label, image
        self._open: dict[int, Any] = {}
        self._columns: dict[str, list[Any]] = {}
        self._reading: _Reading | None = None
        if is_remote(self.files[0]):
            size_of(self.files[0])
        elif self._rows and self.paths:
            refuse_missing(self.paths[0], self.name(0))

    def _file(self, number: int) -> Any:
        """One of the files, opened now if it was not."""
        if number not in self._open:
            with _damage_said(self.files[number]):
                found = _opened(self.files[number])
            if number and (missing := set(self._schema.names) - set(found.schema_arrow.names)):
                there = f"and {self.files[0]} has"
                raise UserError(f"{self.files[number]}: has no column {', '.join(sorted(missing))}, {there}")
            self._open[number] = found
        return self._open[number]

    @property
    def _schema(self) -> Any:
        return self._file(0).schema_arrow

    @cached_property
    def _features(self) -> dict[str, dict[str, Any]]:
        """What Hugging Face's metadata say of the columns."""
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            found = json.loads((self._schema.metadata or {})[b"huggingface"])["info"]["features"]
            return {name: about for name, about in found.items() if isinstance(about, dict)}
        return {}

    @cached_property
    def _image(self) -> str:
        """The column of the pictures."""
        names = self._schema.names
        if self._wanted:
            if self._wanted not in names:
                raise UserError(f"{self.files[0]}: no column '{self._wanted}'; {suggested(self._wanted, names)}")
            return self._wanted
        said = [name for name in names if self._features.get(name, {}).get("_type") == "Image"]
        return said[0] if said else image_column(self.files[0], names)

    @cached_property
    def _classes(self) -> dict[str, tuple[str, ...]]:
        """{column: names of its classes}."""
        said = {
            name: about.get("names") for name, about in self._features.items() if about.get("_type") == "ClassLabel"
        }
        return {name: tuple(map(str, names)) for name, names in said.items() if isinstance(names, list)}

    @property
    def about(self) -> About:
        """By the columns' names, and by Hugging Face's metadata."""
        return self._about

    @cached_property
    def _about(self) -> About:
        names = self._schema.names
        alone = next(iter(self._classes)) if len(self._classes) == 1 else None
        label, caption = self._label or first_of(LABEL, names) or alone, first_of(CAPTION, names)
        kind = "zeroshot" if label in self._classes else "retrieval" if caption and not label else None
        return About(kind, self._classes.get(label or ""), None, label, caption)

    @cached_property
    def _starts(self) -> list[int]:
        """The number of the first row of each file, and that of all rows."""
        return [0, *itertools.accumulate(self._file(i).metadata.num_rows for i in range(len(self.files)))]

    @cached_property
    def _rows(self) -> list[int] | range:
        """The rows of the split, counted over all files."""
        if self._starts[-1] == 0:
            raise UserError(f"{self.files[0]}: an empty table")
        if SPLIT not in self._schema.names:
            return range(self._starts[-1])
        return rows_of(self.files[0], self._column(SPLIT), self._split, self._starts[-1])

    @cached_property
    def paths(self) -> list[Path]:
        """Where the pictures of all samples lie; none where they are inside."""
        with _damage_said(self.files[0]):
            first = self._value(self._rows[0])
        if _inside(first):
            return []
        column = self._column(self._image)
        paths = []
        for number, row in enumerate(self._rows):
            place = _path(column[row])
            if not place:
                raise UserError(f"{self.name(number)}: a picture or its path is needed under '{self._image}'")
            folder = Path(self._images or Path(self.files[self._at(row)[0]]).parent)
            paths.append(folder / place)
        return paths

    @property
    def digest(self) -> str:
        """Of the pictures where they lie outside, else of the files' bytes; a remote file counts by its address and its
        version, as far as its server tells one."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        if self.paths:
            return hashing.of_files(self.paths, gaps=True)
        far = [name for name in self.files if is_remote(name)]
        version = dict(zip(far, versions(far), strict=True))
        files = [f"{name} {version[name]}" if is_remote(name) else hashing.of_file(Path(name)) for name in self.files]
        rows = None if isinstance(self._rows, range) else self._rows
        return hashing.of(files, self._image, rows, self._starts)

    def __len__(self) -> int:
        return len(self._rows)

    def _at(self, row: int) -> tuple[int, int]:
        """(file, row in it) of a row of all files."""
        file = bisect.bisect_right(self._starts, row) - 1
        return file, row - self._starts[file]

    def name(self, number: int) -> str:
        """File and row; rows count from 1."""
        file, row = self._at(self._rows[number])
        return f"{self.files[file]} row {row + 1}"

    def key(self, number: int) -> str:
        """File and row, as a name for a picture inside."""
        file, row = self._at(self._rows[number])
        return f"{Path(self.files[file]).stem}/{row + 1}"

    def image(self, number: int) -> bytes:
        """The bytes of a picture."""
        if self.paths:
            return self.paths[number].read_bytes()
        data = _inside(self._value(self._rows[number]))
        if not data:
            raise ValueError("no picture")
        return data

    def _value(self, row: int) -> Any:
        """What the column of the pictures holds in a row of all files."""
        file, row = self._at(row)
        if self._reading is None or not self._reading.can_reach(file, row):
            self._reading = _Reading(file, self._file(file), self._image, row)
        return self._reading.value(row)

    def _column(self, name: str) -> list[Any]:
        """A column over all rows of all files."""
        if name not in self._columns:
            values: list[Any] = []
            for i, file in enumerate(self.files):
                with _damage_said(file):
                    values += self._file(i).read(columns=[name], use_threads=False).column(0).to_pylist()
            self._columns[name] = values
        return self._columns[name]

    def fields(self) -> list[str]:
        """The other columns."""
        return [name for name in self._schema.names if name != self._image]

    def field(self, number: int, name: str) -> Any:
        """What a column holds in the row."""
        if name not in self.fields():
            raise UserError(f"{self.files[0]}: no column '{name}'; {suggested(name, self.fields())}")
        value = self._column(name)[self._rows[number]]
        return None if name in self._classes and value == -1 else value

    def where(self, number: int) -> dict[str, Any]:
        """Where a picture lies that is a file of its own."""
        if not self.paths:
            raise ValueError(f"{self.name(number)}: a picture inside of Parquet is no span of the file")
        path = self.paths[number]
        return {"key": path.stem, "shard": str(path.resolve()), "offset": 0, "size": path.stat().st_size}

    def __getstate__(self) -> dict[str, Any]:
        # mapped files do not travel to other processes
        return {**self.__dict__, "_open": {}, "_reading": None}


class _Reading:
    """One column of a row group, read on from where it is, for a group may be the whole file."""

    def __init__(self, number: int, file: Any, column: str, row: int) -> None:
        sizes = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        ends = list(itertools.accumulate(sizes))
        group = bisect.bisect_right(ends, row)
        self._number, self._column, self._end = number, column, ends[group]
        self._start, self._values = (ends[group - 1] if group else 0), []
        # no threads: what is read here may be read in a forked worker
        options: dict[str, Any] = {"batch_size": AT_ONCE, "columns": [column], "use_threads": False}
        self._batches = file.iter_batches(row_groups=[group], **options)

    def can_reach(self, number: int, row: int) -> bool:
        """Is this row of this file still ahead in the group?"""
        return number == self._number and self._start <= row < self._end

    def value(self, row: int) -> Any:
        """What the column holds there."""
        while row >= self._start + len(self._values):
            self._start += len(self._values)
            self._values = next(self._batches).column(0)
        return self._values[row - self._start].as_py()


def _inside(value: Any) -> bytes | None:
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else None


def _path(value: Any) -> str | None:
    value = value.get("path") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _opened(name: str) -> Any:
    """A Parquet file, local or fetched, mapped instead of read."""
    import pyarrow.parquet as pq

    if is_remote(name):
        versions([name])
    while is_remote(name):
        with suppress(FileNotFoundError):  # another process needed the room just now
            return pq.ParquetFile(Cache().fetch(name), memory_map=True)
    return pq.ParquetFile(name, memory_map=True)


@contextmanager
def _damage_said(name: str) -> Iterator[None]:
    """Say what is wrong with a file as one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: not a Parquet file that can be read ({' '.join(str(error).split())[:200]})") from None
