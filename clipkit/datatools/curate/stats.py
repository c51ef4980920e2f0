"""`clipkit data stats SRC`: what a set is made of, from the table of its samples."""

from collections.abc import Iterator
from typing import Any

from clipkit.datatools.curate.conditions import Samples, need_duckdb, open_samples
from clipkit.datatools.curate.metadata import chosen, table_of
from clipkit.errors import UserError
from clipkit.shards import Shards

QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
TOP = 5
MOST_GROUPS = 20
UNTOLD = ("number", "key", "sha1")
NUMBERS = ("INTEGER", "BIGINT", "DOUBLE", "FLOAT")


def stats(
    source: str,
    *,
    caption: str = "txt",
    select: str | None = None,
    where: str | None = None,
    by: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Counts, quantiles of the numbers and most frequent texts of the samples of `source`, or of those that `select`
    and `where` keep; with `by` also for each value of that column, the most frequent first.

    Gives `samples`, `left_out` and `unreadable` {reason: count}, `dropped` {by what: count}, `captions`,
    `distinct_captions`, `distinct_pictures` (by their bytes), `columns` (a row for each: column, type, nulls, and min,
    p5 .. p95, max, mean of numbers, or distinct and top [[value, count]] of texts), `groups` (value, samples,
    unreadable, captions, distinct_captions, columns), `other_groups` (how many values `groups` leaves out) and `table`,
    where the rows lie as Parquet.
    Raises: UserError when a column is not there, a condition is wrong or duckdb is not installed.
    """
    need_duckdb()
    held = Shards(source, workers=workers)
    path = table_of(held, caption, workers)
    numbers = chosen(held, select)
    dropped = {"not selected": len(held) - len(numbers)} if select else {}
    if where:
        with open_samples(path, numbers) as samples:
            samples.check(where)
            true, null = samples.verdicts(where)
        dropped |= {"where is false": len(numbers) - len(true) - len(null), "where is null": len(null)}
        numbers = true
    with open_samples(path, numbers if len(numbers) < len(held) else None) as samples:
        if by is not None and by.lower() not in (name.lower() for name in samples.columns):
            raise UserError(f"--by {by}: no such column; the columns are {', '.join(samples.columns)}")
        groups, others = _groups(samples, by) if by is not None else ([], 0)
        return {
            "samples": len(numbers),
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "left_out": dict(held.lost),
            "unreadable": dict(_top(samples, "problem", "true", len(numbers))),
            **_counts(samples, "true"),
            "columns": list(_columns(samples, "true")),
            "groups": groups,
            "other_groups": others,
            "table": str(path),
        }


def _counts(samples: Samples, condition: str, *values: Any) -> dict[str, int]:
    # the distinct hashes are counted and not the texts, which would all be in memory; two of ten million texts share
    # a hash of 64 bits once in 370,000 sets
    query = (
        "select count(caption), count(distinct hash(caption)) filter (caption is not null), "
        f"count(distinct hash(sha1)) filter (sha1 is not null) from samples where {condition}"
    )
    names = ("captions", "distinct_captions", "distinct_pictures")
    return dict(zip(names, samples.ask(query, *values)[0], strict=True))


def _columns(samples: Samples, condition: str, *values: Any) -> Iterator[dict[str, Any]]:
    """A row for each column, of the samples for which `condition` holds."""
    for name, kind in samples.columns.items():
        if name in UNTOLD:
            continue
        column = quoted(name)
        if kind in NUMBERS:
            shares = ", ".join(map(str, QUANTILES.values()))
            query = (
                f"select count(*) - count({column}), min({column}), quantile_cont({column}, [{shares}]), "
                f"max({column}), avg({column}) from samples where {condition}"
            )
            nulls, least, quantiles, most, mean = samples.ask(query, *values)[0]
            middle = dict(zip(QUANTILES, quantiles or [None] * len(QUANTILES), strict=True))
            facts = {"nulls": nulls, "min": least, **middle, "max": most, "mean": mean}
        else:
            query = (
                f"select count(*) - count({column}), count(distinct hash({column})) filter ({column} is not null) "
                f"from samples where {condition}"
            )
            nulls, distinct = samples.ask(query, *values)[0]
            facts = {"nulls": nulls, "distinct": distinct, "top": _top(samples, name, condition, TOP, *values)}
        yield {"column": name, "type": kind.lower(), **facts}


def _top(samples: Samples, name: str, condition: str, most: int, *values: Any) -> list[list[Any]]:
    """The most frequent values of a column and how often each is there; those as frequent in their own order."""
    column = quoted(name)
    query = (
        f"select {column}, count(*) as times from samples where {column} is not null and {condition} "
        f"group by 1 order by times desc, 1 limit {max(int(most), 1)}"
    )
    return [list(row) for row in samples.ask(query, *values)]


def _groups(samples: Samples, by: str) -> tuple[list[dict[str, Any]], int]:
    """(the facts of each of the most frequent values of a column, null among them; how many values there are more)."""
    column, groups = quoted(by), []
    grouped = f"select {column}, count(*) as times, count(problem) from samples group by 1"
    for value, count, unreadable in samples.ask(f"{grouped} order by times desc, 1 limit {MOST_GROUPS}"):
        condition = f"{column} is not distinct from ?"
        facts = {"value": value, "samples": count, "unreadable": unreadable, **_counts(samples, condition, value)}
        groups.append({**facts, "columns": list(_columns(samples, condition, value))})
    return groups, samples.ask(f"select count(*) from ({grouped})")[0][0] - len(groups)


def quoted(name: str) -> str:
    """A column's name as SQL reads it, whatever letters it has."""
    return '"' + name.replace('"', '""') + '"'


def rows(facts: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What `stats` gives, for people: (group or nothing, what, value)."""
    for what in ("left_out", "dropped", "unreadable"):
        yield from (("", f"{what.replace('_', ' ')}: {reason}", f"{count:,}") for reason, count in facts[what].items())
    yield from _told("", facts)
    for group in facts["groups"]:
        yield from _told(str(group["value"]), group)
    if facts["other_groups"]:
        yield "", "more values that are not shown", f"{facts['other_groups']:,}"


def _told(of: str, facts: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for what in ("samples", "captions", "distinct_captions", "distinct_pictures"):
        yield of, what.replace("_", " "), f"{facts[what]:,}"
    for column in facts["columns"]:
        if "top" in column:
            shown = ", ".join(f"{str(value)[:40]} ({count:,})" for value, count in column["top"][:5])
            text = f"{column['distinct']:,} values: {shown}"
        else:
            text = "  ".join(
                f"{name} {column[name]:g}" for name in ("min", "p5", "median", "p95", "max") if column[name] is not None
            )
        missing = f"; {column['nulls']:,} without" if column["nulls"] else ""
        yield of, f"{column['column']} ({column['type']})", text + missing
