"""What the rows of an index are, in SQLite: a hundred by their numbers in a millisecond, and conditions over columns.

A file (`recording` writes it) is written once and read by many.
"""

import re
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError
from clipkit.sets import suggested

FILE = "records.sqlite"
AT_ONCE = 500  # numbers in one question; SQLite binds 32,766 at most
STEPS = 1_000  # of SQLite's machine between two looks at the clock; one may join two long texts
LIMIT_S = 10.0
"""How long a condition may take: 2 million rows a second are looked at."""
LONGEST = 10_000
"""Letters of a condition."""
ALLOWED = (
    "abs", "coalesce", "glob", "ifnull", "iif", "instr", "json_extract", "length", "like", "lower", "ltrim", "max",
    "min", "nullif", "round", "rtrim", "sign", "substr", "substring", "trim", "typeof", "upper", "->", "->>",
)  # fmt: skip
"""Functions that a condition may call: none of them reaches outside, and none makes large values of small ones."""
EXAMPLE = "an expression over the columns is needed, such as width > 512 and lang = 'en'"
TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')|(?P<name>"(?:[^"]|"")*")|`(?:[^`]|``)*`|\[[^\]]*\]"""
    r"""|(?P<open>\()|(?P<close>\))|(?P<bad>--|/\*|[;?@$:#'"`\[]|\b(?i:select|values|with)\b)"""
)


class Records:
    """The metadata of an index; any number of threads may read. `columns` are {name: INTEGER, REAL or TEXT}; those that
    are put into `closed` are to conditions as if they were not there.

    The file is opened here, to look up and for conditions: another may take its place meanwhile, and who looks up does
    not wait for a condition. It is closed when the records are gone.
    Raises: StorageError when the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise StorageError(f"{path}: missing; build the index again")
        with self._told():
            self._reading, self._judging = _opened(path, self), _opened(path, self)
        self._busy, self._judged = threading.Lock(), threading.Lock()
        self.columns = {name: kind.upper() for _, name, kind, *_ in self._ask("pragma table_info(items)")}
        if not {"id", "key"} <= self.columns.keys():
            raise StorageError(f"{path}: damaged (no table of items); build the index again")
        self.closed: frozenset[str] = frozenset()
        self._count = self._ask("select count(*) from items")[0][0]

    def __len__(self) -> int:
        return self._count

    def get(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The records with these numbers, in their order, each with its `id`; None stands for what it lacks.

        Raises: UserError when there is no such number.
        """
        found: dict[int, dict[str, Any]] = {}
        wanted = [int(number) for number in numbers]
        for some in _portions([number for number in wanted if abs(number) < 1 << 63]):
            rows = self._ask(f"select * from items where id in ({_marks(some)})", some)
            found.update((row[0], dict(zip(self.columns, row, strict=True))) for row in rows)
        if missing := [number for number in wanted if number not in found]:
            raise UserError(f"id {missing[0]}: no such row; there are {len(self)}, counted from 0")
        return [found[number] for number in wanted]

    def with_keys(self, keys: Sequence[str]) -> dict[str, list[int]]:
        """{key: the numbers of the records that have it, ascending} of those that are there."""
        found: dict[str, list[int]] = {}
        for some in _portions([key for key in keys if _sound(key)]):
            for key, number in self._ask(f"select key, id from items where key in ({_marks(some)}) order by id", some):
                found.setdefault(str(key), []).append(number)
        return found

    def where(self, condition: str, limit_s: float = LIMIT_S) -> np.ndarray:
        """The numbers, int64 ascending, of the records for which an SQL expression over the columns is true.

        The expression may read columns and call ALLOWED functions, and nothing else.
        Raises: UserError when it is none, asks for something else, or takes longer than `limit_s`.
        """
        if fault := _fault_of(condition, self._open):
            raise _refused(condition, fault)
        with self._judged:
            self._judging.set_authorizer(_Guard(self.closed))
            ends = time.monotonic() + limit_s
            self._judging.set_progress_handler(lambda: int(time.monotonic() > ends), STEPS)
            try:
                cursor = self._judging.execute(f"select id from items where ({condition}) order by id")
                return np.fromiter((row[0] for row in cursor), np.int64)
            except (sqlite3.Error, sqlite3.Warning) as error:
                if _is_damage(error):
                    raise self._damaged(error) from None
                raise _refused(condition, self._fault(str(error), limit_s)) from None

    @property
    def _open(self) -> list[str]:
        return [name for name in self.columns if name not in self.closed]

    def _fault(self, text: str, limit_s: float) -> str:
        """SQLite's words for people who have not seen the whole statement."""
        if text == "interrupted":
            return f"takes longer than {limit_s:g} s; ask for something simpler"
        if column := re.fullmatch(r"no such column: (.*)|access to items\.(.*) is prohibited", text):
            return _no_column(column[1] or column[2], self._open)
        if "prohibited" in text or "not authorized" in text or text.startswith("no such function"):
            return f"only the columns, operators and these functions are allowed: {', '.join(ALLOWED[:-2])} ({text})"
        if text == 'near ")": syntax error':  # our own bracket, behind the condition
            return "ends too early, or has an empty bracket"
        return text

    def _ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._told(), self._busy:
            return self._reading.execute(query, values).fetchall()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._damaged(error) from None

    def _damaged(self, error: BaseException) -> StorageError:
        return StorageError(f"{self.path}: damaged ({error}); build the index again")


def _opened(path: Path, owner: Records) -> sqlite3.Connection:
    """A connection that can write nothing, and makes nothing large; closed when its owner is gone."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    weakref.finalize(owner, connection.close)
    connection.execute("pragma query_only=on")
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 2 * LONGEST)
    connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000_000)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    return connection


class _Guard:
    """SQLite's authorizer: one SELECT, the columns of `items` that are not closed, and the ALLOWED functions."""

    def __init__(self, closed: frozenset[str]) -> None:
        self.selects, self._closed = 0, closed

    def __call__(self, action: int, one: str | None, two: str | None, *_: str | None) -> int:
        self.selects += action == sqlite3.SQLITE_SELECT
        good = (
            (action == sqlite3.SQLITE_SELECT and self.selects == 1)
            or (action == sqlite3.SQLITE_READ and one == "items" and two not in self._closed)
            or (action == sqlite3.SQLITE_FUNCTION and str(two).lower() in ALLOWED)
        )
        return sqlite3.SQLITE_OK if good else sqlite3.SQLITE_DENY


def _fault_of(condition: str, columns: list[str]) -> str | None:
    """Why a condition may not stand between the brackets of our statement; None where it may.

    It must not close our bracket, begin a comment or a second statement; and a name in "double quotes" that is no
    column would silently be a text to SQLite, and the condition true for no row.
    """
    if not condition.strip():
        return EXAMPLE
    if len(condition) > LONGEST:
        return f"at most {LONGEST:,} letters are read, got {len(condition):,}"
    if "\0" in condition or not _sound(condition):
        return "it holds letters that no text has"
    depth, known = 0, {name.lower() for name in columns}
    for token in TOKEN.finditer(condition):
        if bad := token["bad"]:
            named = {"'": "a quote that is not closed", '"': "a quote that is not closed"}
            return f"{EXAMPLE}; got {named.get(bad, repr(bad))}"
        depth += bool(token["open"]) - bool(token["close"])
        if depth < 0:
            break
        if (quoted := token["name"]) and (name := quoted[1:-1].replace('""', '"')).lower() not in known:
            return f"{_no_column(name, columns)}; texts stand in single quotes"
    return "its brackets do not match" if depth else None


def _no_column(name: str, columns: list[str]) -> str:
    return f"no such column: {name}; {suggested(name, [each for each in columns if each != 'id'])}"


def _refused(condition: str, why: str) -> UserError:
    shown = condition if len(condition) <= 200 else f"{condition[:200]}..."
    return UserError(f"where {shown!r}: {why}")


def _is_damage(error: BaseException) -> bool:
    return any(sign in str(error) for sign in ("malformed database", "disk image", "disk I/O", "not a database"))


def _portions(values: list[Any]) -> Iterator[list[Any]]:
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


def _marks(values: Sequence[Any]) -> str:
    return ",".join("?" * len(values))


def _sound(text: str) -> bool:
    """Can SQLite take it? Halves of surrogate pairs have no bytes."""
    return re.search(r"[\ud800-\udfff]", text) is None
