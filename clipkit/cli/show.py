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
    clean = ([_plain(cell) for cell in row] for row in rows)
    if not sys.stdout.isatty():
        for row in [head, *clean]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*head)
    for row in clean:
        drawn.add_row(*map(Text, row))  # not as rich's markup
    Console().print(drawn)


def _plain(cell: str) -> str:
    """A cell without what would break the line or speak to the terminal; captions come from anywhere."""
    return "".join(letter if letter.isprintable() else " " for letter in cell)
