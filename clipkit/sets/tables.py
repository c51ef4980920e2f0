"""Tables in text: CSV, TSV and JSON lines, with a column that says where a picture is."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipkit.errors import UserError
from clipkit.sets.files import Files, refuse_missing
from clipkit.sets.samples import About

SUFFIXES = (".csv", ".tsv", ".jsonl")
IMAGE = ("image", "image_path", "filepath", "file_name", "filename", "image_name", "path", "img")
LABEL = ("label", "labels", "cls", "class")
CAPTION = ("captions", "caption", "text", "title", "sentences")
SPLIT = "split"


class InTable(Files):
    """The `found` rows of a table; a row's columns are its fields. A picture is a path beside the table, in `images`,
    or absolute.

    With a column `split`, the rows of that split (null: all). In a table of captions without labels, the rows of one
    picture are one sample, whose caption is the list of theirs.
    Raises: UserError when there are no rows, or no column says where pictures are.
    """

    def __init__(
        self, path: Path, found: Sequence[dict[str, Any]], images: str | None, split: str | None,
        label: str | None = None,
    ) -> None:  # fmt: skip
        if not found:
            raise UserError(f"{path}: an empty table")
        names = list(dict.fromkeys(name for row in found for name in row))
        column = image_column(str(path), names)
        kept = rows_of(str(path), [row.get(SPLIT) for row in found] if SPLIT in names else None, split, len(found))
        self._numbers = [number + 1 for number in kept]
        rows = [found[number] for number in kept]
        label, caption = label or first_of(LABEL, names), first_of(CAPTION, names)
        if caption and not label:
            self._numbers, rows = _joined(self._numbers, rows, column, caption)
        self._path = path
        folder = Path(images) if images else path.parent
        paths = [folder / self._place(i, row.get(column)) for i, row in enumerate(rows)]
        refuse_missing(paths[0], self.name(0))
        super().__init__(paths, rows, About("retrieval" if caption and not label else None, None, None, label, caption))

    def _place(self, number: int, value: Any) -> str:
        value = value.get("path") if isinstance(value, dict) else value
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{self.name(number)}: the path of a picture is needed, got {value!r}")
        return value.strip()

    def name(self, number: int) -> str:
        """Table and row; rows count from 1."""
        return f"{self._path} row {self._numbers[number]}"


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV or JSON-lines file; a CSV whose header has tabs and no comma is read as TSV.

    Raises: UserError when it is not there, no file or not UTF-8, or naming the line that is broken.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: not a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line}: not UTF-8 text") from None
    return list(_json_lines(path, text) if path.suffix.lower() == ".jsonl" else _separated(path, text))


def objects(path: Path, found: Sequence[Any]) -> list[dict[str, Any]]:
    """The rows of a JSON file that holds a list of objects.

    Raises: UserError naming the first that is something else.
    """
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path} row {number}: an object is needed, got {str(row)[:40]!r}")
    return list(found)


def _json_lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}: line {number}: broken JSON") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: an object is needed, got {line.strip()[:40]!r}")
        yield row


def _separated(path: Path, text: str) -> Iterator[dict[str, Any]]:
    header = text.partition("\n")[0]
    tabs = path.suffix.lower() == ".tsv" or ("\t" in header and "," not in header)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", strict=True)
    try:
        names = next(reader, [])
        for row in reader:
            if row and len(row) != len(names):
                raise UserError(f"{path}: line {reader.line_num}: {len(row)} values for {len(names)} columns")
            if row:
                yield dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None


def first_of(names: Sequence[str], there: Sequence[str]) -> str | None:
    """The first of some names that is there."""
    return next((name for name in names if name in there), None)


def image_column(where: str, names: Sequence[str]) -> str:
    """The column that says where pictures are.

    Raises: UserError naming the columns that are there.
    """
    column = first_of(IMAGE, names)
    if column is None:
        raise UserError(
            f"{where}: a column called {', '.join(IMAGE[:-1])} or {IMAGE[-1]} is needed, got {', '.join(names)}"
        )
    return column


def rows_of(where: str, splits: Sequence[Any] | None, split: str | None, count: int) -> list[int]:
    """The numbers of the rows of a split (null: all rows), by the values of the column `split` (null: there is none).

    Raises: UserError naming the splits that are there.
    """
    if splits is None or split is None:
        return list(range(count))
    kept = [number for number, value in enumerate(splits) if value == split]
    if not kept:
        there = ", ".join(str(value) for value in dict.fromkeys(splits))
        raise UserError(f"{where}: the column split has no '{split}'; split is one of: {there}")
    return kept


def _joined(
    numbers: Sequence[int], rows: Sequence[dict[str, Any]], column: str, caption: str
) -> tuple[list[int], list[dict[str, Any]]]:
    """(number of the first row of each picture, that row with the captions of all its rows)."""
    by_picture: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_picture.setdefault(str(row.get(column)), []).append(i)
    if len(by_picture) == len(rows):
        return list(numbers), list(rows)
    joined = []
    for same in by_picture.values():
        values = [rows[i].get(caption) for i in same]
        texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
        joined.append({**rows[same[0]], caption: texts})
    return [numbers[same[0]] for same in by_picture.values()], joined
