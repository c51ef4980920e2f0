"""Tables of image and caption as streams of rows: CSV, TSV, JSON lines, a list in a JSON file, Parquet."""

import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkit.datatools.pack.rows import Columns, Options, Row, check_no_address, choose, table_row
from clipkit.errors import BadData, UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*DELIMITERS, *JSON_LINES, ".parquet", ".json")
LONGEST_FIELD = 1 << 24  # characters: more is a quote that never closes
PEEK = 100  # rows of JSON whose keys are taken for the columns

Records = Iterator[tuple[str, Mapping[str, Any] | str]]
"""(where a record stands, the record, or why it is none)"""


class Table:
    """Rows of some table files of one kind; relative paths start from `root`, else from the folder of each file."""

    kind = "a table"

    def __init__(self, files: Sequence[Path], options: Options, absolute: bool = True) -> None:
        self.files, self.options, self.absolute = list(files), options, absolute
        self.ignored: dict[str, int] = {}
        self._stamp = stamp(self.files)
        self.columns = [self._columns(path) for path in self.files]

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and times of the table files, as they were when the table was opened."""
        return self._stamp

    def rows(self) -> Iterator[Row]:
        """All rows of all files."""
        for path, columns in zip(self.files, self.columns, strict=True):
            root = os.path.abspath(self.options.root or path.parent)
            for id, record in records(path):
                if isinstance(record, str):
                    yield Row(id, problem=record)
                    continue
                row = table_row(id, record, columns, root, self.absolute)
                if path.suffix.lower() in DELIMITERS:
                    row = row._replace(extra={key: number(text) for key, text in row.extra.items()})
                yield row

    def _columns(self, path: Path) -> Columns:
        found = list(itertools.islice((record for _, record in records(path) if not isinstance(record, str)), PEEK))
        seen = dict.fromkeys(key for record in found for key in record)
        names = parquet_columns(path) if path.suffix.lower() == ".parquet" else list(seen)
        if not found and not names:
            raise UserError(f"{path}: holds no rows")
        columns = choose(names, self.options, str(path))
        for record in found[:1]:
            check_no_address(record.get(columns.image), columns.image, str(path))
        return columns


def stamp(files: Sequence[Path]) -> dict[str, Any]:
    """What tells whether files have changed: how many, their bytes, and a digest of names, sizes and times."""
    import hashlib

    digest, total = hashlib.sha1(), 0
    for path in files:
        facts = path.stat()
        total += facts.st_size
        digest.update(f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return {"files": len(files), "bytes": total, "digest": digest.hexdigest()[:16]}


def records(path: Path) -> Records:
    """The records of one table file, by what its suffix says.

    Raises: UserError when it cannot be read as that; BadData when a Parquet file is damaged.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        return _separated(path, DELIMITERS[suffix])
    if suffix in JSON_LINES:
        return _json_lines(path)
    if suffix == ".parquet":
        return _parquet(path)
    return _json_list(path)


def _separated(path: Path, delimiter: str) -> Records:
    """Rows by their header. Strict: a quote that is out of place would otherwise swallow rows without a word."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: is UTF-16; save it as UTF-8")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            twice = [name for name in header if header.count(name) > 1]
            if twice:
                raise UserError(f"{path}: column '{twice[0]}' stands twice; name each once")
            line = reader.line_num + 1
            for fields in reader:
                id, line = f"{path.name} line {line}", reader.line_num + 1
                if len(fields) == len(header):
                    yield id, dict(zip(header, fields, strict=True))
                elif fields:  # else a blank line
                    yield id, "another number of fields than the header"
        except csv.Error as error:
            raise UserError(
                f"{path} line {reader.line_num}: {error}; quote fields as CSV does (a quote inside doubled), "
                "or give JSON lines"
            ) from error


def number(text: str) -> str | int | float:
    """A field of a CSV file as the number that it spells exactly ("7", "0.25"), else as it is ("007", "1.50")."""
    if not text or len(text) > 18 or text[-1] not in "0123456789":
        return text
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if str(value) == text:
            return value
    return text


def _json_lines(path: Path) -> Records:
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            if data.strip():
                yield f"{path.name} line {line}", _object(data.removeprefix(b"\xef\xbb\xbf"))


def _object(data: bytes) -> Mapping[str, Any] | str:
    try:
        value = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return "broken JSON"
    return value if isinstance(value, dict) else "JSON that is no object"


def load_json(path: Path) -> Any:
    """What a whole JSON file holds.

    Raises: UserError when it is no JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}); JSON lines are told by the suffix .jsonl") from error


def _json_list(path: Path) -> Records:
    for place, value in enumerate(load_json(path), start=1):
        yield f"{path.name} item {place}", value if isinstance(value, dict) else "JSON that is no object"


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    from pyarrow import parquet

    return list(parquet.read_schema(path).names)


def _parquet(path: Path) -> Records:
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256, use_threads=False):  # 256 rows: they may hold images
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path.name} row {row}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise BadData(f"{path}: is damaged after row {row}, or no Parquet ({error}); fetch it again") from error
