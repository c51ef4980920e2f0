"""Results on stdout."""

import json
import sys
from collections.abc import Iterable
from typing import Any


def lines(rows: Iterable[Any]) -> None:
    """One JSON object a line."""
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def table(head: tuple[str, ...], rows: Iterable[Any]) -> None:
    """Columns on stdout: drawn for a terminal, separated by tabs for a pipe, where nothing may be cut."""
    if not sys.stdout.isatty():
        for row in [head, *rows]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*head)
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)
