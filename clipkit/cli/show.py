"""Results on stdout, and the options that several commands share."""

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

Model = Annotated[
    str, typer.Argument(help="Run or checkpoint folder, NAME/TAG of open_clip, hf-hub:... or local-dir:...")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]


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


def told(facts: dict[str, Any], as_json: bool) -> None:
    """What was done, by name and value."""
    if as_json:
        lines([facts])
        return
    rows = []
    for what, value in facts.items():
        if isinstance(value, dict):
            rows += [(f"{what.replace('_', ' ')}: {why}", f"{count:,}") for why, count in value.items()]
        elif value is not None:
            rows.append((what.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)))
    table(("what", "value"), rows)


def _plain(cell: str) -> str:
    """A cell without what would break the line or speak to the terminal; captions come from anywhere."""
    return "".join(letter if letter.isprintable() else " " for letter in cell)
