"""Writing the file of an index's records: a table `items(id INTEGER PRIMARY KEY, ...)`, id being the row's number."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def write(path: Path, tables: Iterable[Any], first: int = 0) -> int:
    """Write (or, with `first`, go on with) the file from pyarrow tables of the rows in their order; gives the number of
    rows that it then has. Not atomic: it is written beside its place and renamed by who calls.

    `image_path` of clip-retrieval's layout becomes `key` where there is none, else the row's number does. A column
    `id` is kept as `id_`, and so is one whose name another has but for capitals. New columns of later tables are
    added. Truths are 1 and 0, times ISO 8601, decimals REAL, bytes hexadecimal, lists and objects JSON.
    """
    import pyarrow as pa

    connection = sqlite3.connect(path)
    try:
        connection.execute("pragma journal_mode=off")
        connection.execute("create table if not exists items (id integer primary key)")
        number = first
        for table in tables:
            table = _named(_with_key(table, number))
            _add_columns(connection, table)
            names = ["id", *table.column_names]
            rows = zip(range(number, number + table.num_rows), *map(_values, table.columns), strict=True)
            insert = f"insert into items ({','.join(map(_quoted, names))}) values ({','.join('?' * len(names))})"
            connection.executemany(insert, rows)
            number += table.num_rows
        _add_columns(connection, pa.table({"key": pa.nulls(0, pa.string())}))  # were there no table at all
        connection.execute("create index if not exists by_key on items (key)")
        connection.execute("analyze")
        connection.commit()
    finally:
        connection.close()
    return number


def _with_key(table: Any, first: int) -> Any:
    import pyarrow as pa

    if "key" in table.column_names:
        return table
    if "image_path" in table.column_names:
        return table.append_column("key", table.column("image_path").cast(pa.string()))
    return table.append_column("key", pa.array([str(number) for number in range(first, first + table.num_rows)]))


def _named(table: Any) -> Any:
    """The table with names that SQLite, which knows no capitals, can tell apart."""
    taken, names = {"id", "key"}, []
    for name in table.column_names:
        new = name
        while new != "key" and new.lower() in taken:
            new += "_"
        taken.add(new.lower())
        names.append(new)
    return table.rename_columns(names)


def _add_columns(connection: sqlite3.Connection, table: Any) -> None:
    there = {name.lower() for _, name, *_ in connection.execute("pragma table_info(items)")}
    for field in table.schema:
        if field.name.lower() not in there:
            connection.execute(f"alter table items add column {_quoted(field.name)} {_kind(field.type)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _kind(kind: Any) -> str:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "integer"
    return "real" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else "text"


def _values(column: Any) -> Iterator[Any]:
    """The values as SQLite takes them; not-a-number becomes NULL."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.cast(kind.value_type))
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return iter(column.cast(pa.float64()).to_pylist())
    if pa.types.is_temporal(kind):
        return iter(column.cast(pa.string()).to_pylist())
    if pa.types.is_unsigned_integer(kind):  # SQLite's integers end at 2^63
        return (float(value) if value is not None and value >= 1 << 63 else value for value in column.to_pylist())
    shown = _json if pa.types.is_nested(kind) else bytes.hex if _is_binary(kind) else None
    if shown is None:
        return iter(column.to_pylist())
    return (None if value is None else shown(value) for value in column.to_pylist())


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # not-a-number is no JSON, and json_extract would refuse the whole condition
        return json.dumps(json.loads(json.dumps(value, default=str), parse_constant=lambda _: None), ensure_ascii=False)
