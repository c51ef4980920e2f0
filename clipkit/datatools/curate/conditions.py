"""SQL over the table of samples: one expression at a time, which can read or write nothing else."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.datatools.curate.metadata import SCORE
from clipkit.errors import UserError


class Samples:
    """Rows of a table of samples, by SQL."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.columns: dict[str, str] = {name: kind for name, kind, *_ in self.ask("describe samples")}

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query of ours; the rows of the table are called `samples`."""
        return self._connection.execute(query, list(values)).fetchall()

    def check(self, where: str) -> None:
        """Refuse what is not one expression over the columns that is true or false.

        Raises: UserError with the fault, and the columns that are there.
        """
        tree = self._tree(where)
        if any(node.get("class") == "SUBQUERY" for node in _nodes(tree)):
            raise UserError(f"{self._said(where)}: an expression without SELECT is needed")
        with self._told(where):
            self.ask(f"select 0 from samples where (\n{where}\n) limit 0")
            described = self.ask(f"describe select (\n{where}\n) from samples")
        if [kind for _, kind, *_ in described] != ["BOOLEAN"]:
            what = f"a condition is needed, such as width >= 256; this is {described[0][1]}"
            raise UserError(f"{self._said(where)}: {what}")

    def uses_score(self, where: str) -> bool:
        """Does the expression ask for the model's scores?"""
        names = (node.get("column_names", [""]) for node in _nodes(self._tree(where)))
        return any(name[-1].lower() == SCORE for name in names)

    def verdicts(self, where: str) -> tuple[np.ndarray, np.ndarray]:
        """(numbers for which the expression is true, those for which it is null), int64 ascending each.

        Raises: UserError when it fails on some value.
        """
        with self._told(where):
            query = f"select number, (\n{where}\n) as verdict from samples order by number"
            found = self._connection.execute(query).fetchnumpy()
        numbers, null = np.asarray(found["number"], np.int64), np.ma.getmaskarray(found["verdict"])
        true = np.ma.filled(found["verdict"], False).astype(bool) & ~null
        return numbers[true], numbers[null]

    def _tree(self, where: str) -> dict[str, Any]:
        """The parsed expression.

        Raises: UserError when it is none, or more than one.
        """
        asked = self.ask("select json_serialize_sql(?::varchar)", f"select (\n{where}\n)")
        parsed = json.loads(asked[0][0])
        if parsed["error"]:
            raise UserError(f"{self._said(where)}: {parsed['error_message']}{self._there(where)}")
        node = parsed["statements"][0]["node"]
        alone = len(parsed["statements"]) == 1 and node["type"] == "SELECT_NODE" and len(node["select_list"]) == 1
        if (
            not where.strip()
            or not alone
            or node["from_table"]["type"] != "EMPTY"
            or node["where_clause"]
            or node["modifiers"]
        ):
            raise UserError(f"{self._said(where)}: one expression is needed, such as width >= 256")
        return node

    @contextmanager
    def _told(self, where: str) -> Iterator[None]:
        import duckdb

        try:
            yield
        except (
            duckdb.ProgrammingError,
            duckdb.DataError,
            duckdb.NotSupportedError,
            duckdb.PermissionException,
        ) as error:
            first = str(error).splitlines()[0].rstrip("!")
            fault = first.partition("Error: ")[2] or first
            raise UserError(f"{self._said(where)}: {fault}{self._there(where)}") from None

    def _said(self, where: str) -> str:
        return f"--where {where!r}"

    def _there(self, where: str) -> str:
        more = "" if SCORE in self.columns or SCORE not in where.lower() else f"; {SCORE} needs --model or --vectors"
        return f"; the columns are {', '.join(self.columns)}{more}"


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a parsed expression."""
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for below in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(below)


def need_duckdb() -> None:
    """Raises: UserError when the package that answers SQL is not installed."""
    try:
        import duckdb  # noqa: F401
    except ImportError:
        raise UserError(
            "conditions and statistics are computed by duckdb; type: pip install 'clipkit[curate]'"
        ) from None


@contextmanager
def open_samples(
    path: Path, numbers: np.ndarray | None = None, scores: tuple[np.ndarray, np.ndarray] | None = None
) -> Iterator[Samples]:
    """The rows of a table with these flat `numbers` (or all) as Samples, with the column clip_score from `scores`, a
    pair (numbers, scores), where that is given.

    Raises: UserError when duckdb is not installed.
    """
    need_duckdb()
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as dataset

    with tempfile.TemporaryDirectory(prefix="clipkit-") as spill:
        config: dict[str, Any] = {
            "enable_external_access": "false", "python_enable_replacements": "false",
            "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
            "temp_directory": spill, "lock_configuration": "true",
        }  # fmt: skip
        connection = duckdb.connect(":memory:", config=config)
        try:
            connection.register("metadata", dataset.dataset(path))
            query = "create view samples as select * from metadata"
            if scores is not None:
                values = pa.array(scores[1], pa.float64(), from_pandas=True)
                connection.register("scores", pa.table({"number": scores[0], SCORE: values}))
                query += " left join scores using (number)"
            if numbers is not None:
                connection.register("chosen", pa.table({"number": numbers}))
                query += " semi join chosen using (number)"
            connection.execute(query)
            yield Samples(connection)
        finally:
            connection.close()
