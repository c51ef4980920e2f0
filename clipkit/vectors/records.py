"""What the rows of an index are, in SQLite: a hundred by their numbers in a millisecond, and conditions over columns.

`items(id INTEGER PRIMARY KEY, ...)`: id is the row's number. A file is written once and read by many.
"""

import json
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError
from clipkit.sets import suggested

FILE = "records.sqlite"
AT_ONCE = 500  # numbers in one question; SQLite binds 32,766 at most
STEPS = 10_000  # of SQLite's machine between two looks at the clock
LIMIT_S = 10.0
"""How long a condition may take: 2 million rows a second are looked at."""
ALLOWED = (
    "abs", "coalesce", "glob", "ifnull", "iif", "instr", "length", "like", "lower", "ltrim", "max", "min", "nullif",
    "replace", "round", "rtrim", "sign", "substr", "substring", "trim", "typeof", "upper", "json_extract",
)  # fmt: skip
"""Functions that a condition may call: none of them reaches outside, and none makes large values of small ones."""


class Records:
    """The metadata of an index; any number of threads may read.

    Raises: StorageError when the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._here = threading.local()
        if not path.is_file():
            raise StorageError(f"{path}: missing; build the index again")
        with self._told():
            self.columns = {name: kind for _, name, kind, *_ in self._ask("pragma table_info(items)")}
            self._count = self._ask("select count(*) from items")[0][0]
        if "id" not in self.columns:
            raise StorageError(f"{path}: damaged (no table of items); build the index again")

    def __len__(self) -> int:
        return self._count

    def get(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The records with these numbers, in their order, each with its `id`; None stands for what it lacks."""
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(numbers), AT_ONCE):
            some = [int(number) for number in numbers[start : start + AT_ONCE]]
            with self._told():
                rows = self._ask(f"select * from items where id in ({','.join('?' * len(some))})", some)
            found.update((row[0], dict(zip(self.columns, row, strict=True))) for row in rows)
        return [found[int(number)] for number in numbers]

    def with_keys(self, keys: Sequence[str]) -> dict[str, list[int]]:
        """{key: the numbers of the records that have it, ascending} of those that are there."""
        found: dict[str, list[int]] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = list(keys[start : start + AT_ONCE])
            with self._told():
                marks = ",".join("?" * len(some))
                rows = self._ask(f"select key, id from items where key in ({marks}) order by id", some)
            for key, number in rows:
                found.setdefault(key, []).append(number)
        return found

    def where(self, condition: str, limit_s: float = LIMIT_S) -> np.ndarray:
        """The numbers, int64 ascending, of the records for which an SQL expression over the columns is true.

        The expression may read columns and call ALLOWED functions, and nothing else.
        Raises: UserError when it is none, asks for something else, or takes longer than `limit_s`.
        """
        if not condition.strip() or _comments(condition):
            raise self._refused(condition, "an expression over the columns is needed, such as width > 512")
        with self._told(), self._guarded(condition, limit_s) as connection:
            cursor = connection.execute(f"select id from items where ({condition}) order by id")
            return np.fromiter((row[0] for row in cursor), np.int64)

    @contextmanager
    def _guarded(self, condition: str, limit_s: float) -> Iterator[sqlite3.Connection]:
        """A connection that allows one SELECT over `items` and stops when its time is over."""
        import time

        connection = self._connection()
        selects, ends = 0, time.monotonic() + limit_s

        def allow(action: int, one: str | None, two: str | None, _: str | None, __: str | None) -> int:
            nonlocal selects
            selects += action == sqlite3.SQLITE_SELECT
            good = (
                (action == sqlite3.SQLITE_SELECT and selects == 1)
                or (action == sqlite3.SQLITE_READ and one == "items")
                or (action == sqlite3.SQLITE_FUNCTION and str(two).lower() in ALLOWED)
            )
            return sqlite3.SQLITE_OK if good else sqlite3.SQLITE_DENY

        connection.set_authorizer(allow)
        connection.set_progress_handler(lambda: int(time.monotonic() > ends), STEPS)
        try:
            yield connection
        except (sqlite3.OperationalError, sqlite3.DatabaseError, sqlite3.ProgrammingError, sqlite3.Warning) as error:
            raise self._refused(condition, self._fault(error, limit_s)) from None
        finally:
            connection.set_authorizer(None)
            connection.set_progress_handler(None, 0)

    def _fault(self, error: sqlite3.Error, limit_s: float) -> str:
        text = str(error)
        if text == "interrupted":
            return f"takes longer than {limit_s:g} s"
        if column := re.fullmatch(r"no such column: (.*)", text):
            return f"{text}; {suggested(column[1], [name for name in self.columns if name != 'id'])}"
        if "prohibited" in text or "not authorized" in text:
            return f"only the columns, operators and {', '.join(ALLOWED[:3])}, ... are allowed ({text})"
        return text

    def _refused(self, condition: str, why: str) -> UserError:
        return UserError(f"where {condition[:200]!r}: {why}")

    def _ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection().execute(query, values).fetchall()

    def _connection(self) -> sqlite3.Connection:
        """This thread's own connection, which can write nothing."""
        if not hasattr(self._here, "connection"):
            address = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(address, uri=True, check_same_thread=False)
            connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 20_000)
            connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000_000)
            self._here.connection = connection
        return self._here.connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"{self.path}: damaged ({error}); build the index again") from None


def _comments(condition: str) -> bool:
    """Could the text end what stands around it? Comments outside of quotes would swallow our bracket."""
    outside = re.sub(r"'[^']*'|\"[^\"]*\"", "", condition)
    return "--" in outside or "/*" in outside or "\0" in condition


def write(path: Path, tables: Iterable[Any], first: int = 0) -> int:
    """Write (or, with `first`, go on with) the file from pyarrow tables of the rows in their order; gives the number of
    rows that it then has. `image_path` of clip-retrieval's layout becomes `key` where there is none.

    New columns of later tables are added; lists and objects are kept as JSON.
    """
    connection = sqlite3.connect(path)
    try:
        connection.execute("pragma journal_mode=off" if first == 0 else "pragma journal_mode=delete")
        connection.execute("create table if not exists items (id integer primary key)")
        number = first
        for table in tables:
            table = _with_key(table)
            _add_columns(connection, table)
            names = ["id", *table.column_names]
            rows = zip(range(number, number + table.num_rows), *map(_values, table.columns), strict=True)
            marks = ",".join("?" * len(names))
            connection.executemany(f"insert into items ({','.join(map(_quoted, names))}) values ({marks})", rows)
            number += table.num_rows
        connection.execute("create index if not exists by_key on items (key)")
        connection.execute("analyze")
        connection.commit()
    finally:
        connection.close()
    return number


def _with_key(table: Any) -> Any:
    import pyarrow as pa

    if "key" in table.column_names:
        return table
    if "image_path" in table.column_names:
        return table.append_column("key", table.column("image_path").cast(pa.string()))
    return table.append_column("key", pa.array([str(number) for number in range(table.num_rows)]))


def _add_columns(connection: sqlite3.Connection, table: Any) -> None:
    there = {name.lower() for _, name, *_ in connection.execute("pragma table_info(items)")}
    for field in table.schema:
        if field.name.lower() not in there:
            connection.execute(f"alter table items add column {_quoted(field.name)} {_kind(field.type)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _kind(kind: Any) -> str:
    import pyarrow as pa

    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integer"
    return "real" if pa.types.is_floating(kind) else "text"


def _values(column: Any) -> Iterator[Any]:
    import pyarrow as pa

    if pa.types.is_nested(column.type):
        return (None if value is None else json.dumps(value, ensure_ascii=False) for value in column.to_pylist())
    if pa.types.is_string(column.type) or pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return iter(column.to_pylist())
    return (None if value is None else value if isinstance(value, bool) else str(value) for value in column.to_pylist())
