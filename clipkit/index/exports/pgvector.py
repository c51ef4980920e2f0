"""PostgreSQL with the extension pgvector: a table with columns for the vectors and for the metadata.

Source: pgvector's README: `<#>` is the negative inner product; psycopg's COPY.
"""

from typing import Any, LiteralString, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from clipkit.errors import UserError
from clipkit.index.exports.rows import EXACT, Batch, Export, plain

AT_ONCE = 2000
INDEXED = 2000
"""The widest vectors that pgvector indexes."""


def write(rows: Export, url: str, exact: int = EXACT) -> list[str]:
    """Write a table, batch by batch, each in its transaction; gives how it is searched. Rows that are there under the
    same id are replaced, those of an earlier, longer export removed. Beyond `exact` rows each vector column gets an
    index of lists.

    Raises: UserError when the server cannot be reached, lacks the extension, or the table is somebody else's.
    """
    import psycopg

    address, name, shown = _parted(url)
    try:
        with psycopg.connect(address) as connection:
            told = _written(connection, name, shown, rows, exact)
    except psycopg.Error as error:
        raise UserError(f"--to {shown}: {_first_line(error)}") from None
    return told


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _parted(url: str) -> tuple[str, str, str]:
    """(address without ours, table, address to show: without user and password)."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"--to postgresql: no address ({error})") from None
    query = parse_qsl(parts.query, keep_blank_values=True)
    name = dict(query).get("table", "")
    shown = f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if not name:
        raise UserError(f"--to {shown}: the name of a table is needed: postgresql://USER@HOST/DATABASE?table=NAME")
    rest = urlencode([(key, value) for key, value in query if key != "table"])
    return urlunsplit(parts._replace(query=rest)), name, f"{shown}?table={name}"


def _written(connection: Any, name: str, shown: str, rows: Export, exact: int) -> list[str]:
    from pgvector.psycopg import register_vector
    from psycopg import sql

    _extension(connection, shown)
    register_vector(connection)
    table, columns = sql.Identifier(*name.split(".", 1)), _columns(rows)
    _make(connection, table, name, shown, columns)
    for batch in rows.batches(AT_ONCE, "postgresql"):
        _copy(connection, table, columns, rows, batch)
        connection.commit()
    connection.execute(sql.SQL("delete from {} where id >= %s").format(table), [len(rows)])
    connection.commit()
    return _indexed(connection, table, name, rows, exact)


def _extension(connection: Any, shown: str) -> None:
    import psycopg

    try:
        connection.execute("create extension if not exists vector")
        connection.commit()
    except psycopg.Error as error:
        connection.rollback()
        if connection.execute("select 1 from pg_type where typname = 'vector'").fetchone() is None:
            raise UserError(
                f"--to {shown}: the extension pgvector is missing ({_first_line(error)}); install it, and as the "
                "database's owner type: CREATE EXTENSION vector"
            ) from None


def _columns(rows: Export) -> dict[str, str]:
    """{name: type as PostgreSQL writes it}."""
    vectors = {column: f"vector({rows.width})" for column in rows.columns.values()}
    return {"id": "bigint", **vectors, **{field.name: _kind(field.type) for field in rows.schema}}


def _kind(kind: Any) -> str:
    import pyarrow as pa

    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "bigint"
    if pa.types.is_floating(kind):
        return "double precision"
    return "jsonb" if pa.types.is_nested(kind) else "text"


def _make(connection: Any, table: Any, name: str, shown: str, columns: dict[str, str]) -> None:
    """Make the table where there is none; with other columns than ours it is somebody else's."""
    from psycopg import sql

    kinds = {
        column: sql.SQL(cast(LiteralString, kind)) for column, kind in columns.items()
    }  # of _kind, none of the data
    lines: list[Any] = [sql.SQL("{} {}").format(sql.Identifier(column), kind) for column, kind in kinds.items()]
    lines.append(sql.SQL("primary key (id)"))
    connection.execute(sql.SQL("create table if not exists {} ({})").format(table, sql.SQL(", ").join(lines)))
    there = connection.execute(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute "
        "where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
        [table.as_string(connection)],
    ).fetchall()
    if dict(there) != columns:
        raise UserError(f"--to {shown}: the table {name} is there and has other columns; give another name")
    connection.commit()


def _copy(connection: Any, table: Any, columns: dict[str, str], rows: Export, batch: Batch) -> None:
    """Copy a batch into a table of its own, and from there over what is there under the same ids."""
    from psycopg import sql

    names = [sql.Identifier(column) for column in columns]
    listed = sql.SQL(", ").join(names)
    changed = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(each) for each in names[1:])
    connection.execute(sql.SQL("create temporary table clipkit_part (like {}) on commit drop").format(table))
    with connection.cursor() as cursor:
        with cursor.copy(sql.SQL("copy clipkit_part ({}) from stdin (format binary)").format(listed)) as copy:
            copy.set_types([kind.partition("(")[0] for kind in columns.values()])
            for row in _rows(columns, rows, batch):
                copy.write_row(row)
        cursor.execute(
            sql.SQL("insert into {} ({}) select {} from clipkit_part on conflict (id) do update set {}").format(
                table, listed, listed, changed
            )
        )


def _rows(columns: dict[str, str], rows: Export, batch: Batch) -> Any:
    """The values of each row in the order of the columns."""
    kinds = list(columns.values())[1 + len(rows.columns) :]
    records = zip(*(column.to_pylist() for column in batch.table.columns), strict=True)
    for i, (number, record) in enumerate(zip(batch.ids, records, strict=True)):
        vectors = [batch.vectors[kind][i] for kind in rows.columns]
        values = [_value(value, kind) for value, kind in zip(record, kinds, strict=True)]
        yield number, *(vector if vector.any() else None for vector in vectors), *values


def _value(value: Any, kind: str) -> Any:
    from psycopg.types.json import Jsonb

    if value is None:
        return None
    if kind == "jsonb":
        return Jsonb(_without_zeros(plain(value)))
    return _without_zeros(value if isinstance(value, str) else str(value)) if kind == "text" else value


def _without_zeros(value: Any) -> Any:
    """Text of PostgreSQL cannot hold the character 0, and its JSON neither."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_without_zeros(name): _without_zeros(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_zeros(each) for each in value]
    return value


def _indexed(connection: Any, table: Any, name: str, rows: Export, exact: int) -> list[str]:
    """Make the indexes; gives how the table is searched."""
    from psycopg import sql

    connection.execute(sql.SQL("create index if not exists {} on {} (key)").format(_named(name, "key"), table))
    query = "postgresql: select key from {} order by {} <#> VECTOR limit 10"
    told = [query.format(name, column) for column in rows.columns.values()]
    if len(rows) > exact and rows.width <= INDEXED:
        lists = max(len(rows) // 1000, 10) if len(rows) <= 1_000_000 else int(len(rows) ** 0.5)
        # pgvector trains on 50 rows for each list, in this memory
        memory = max(64, 2 * 50 * lists * rows.width * 4 >> 20)
        connection.execute(sql.SQL("set maintenance_work_mem = {}").format(sql.Literal(f"{memory}MB")))
        for column in rows.columns.values():
            query = "create index if not exists {} on {} using ivfflat ({} vector_ip_ops) with (lists = {})"
            connection.execute(
                sql.SQL(query).format(_named(name, column), table, sql.Identifier(column), sql.Literal(lists))
            )
        told.append(f"postgresql: before it, set ivfflat.probes = {max(lists // 16, 1)}: words lie apart from all "
                    "pictures and need more than the default of 1")  # fmt: skip
    connection.commit()
    return told


def _named(name: str, column: str) -> Any:
    from psycopg import sql

    return sql.Identifier(f"{name.rpartition('.')[2]}_{column}"[:63])
