"""`clipkit eval`: scores of models on the command line, and which of them is better."""

from typing import Annotated, Any

import typer

from clipkit.cli.show import lines, table
from clipkit.errors import UserError


def score(
    *,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Run or checkpoint folders, NAME/TAG of open_clip, hf-hub:... or local-dir:..."),
    ] = None,
    suite: Annotated[
        str,
        typer.Argument(
            help="A suite or a data set: a YAML file, a name in eval/suites or eval/datasets, or data that say what "
            "they are for. With --compare, results files (.jsonl) may stand for all these."
        ),
    ],
    root: Annotated[str, typer.Option(help="Folder that relative data paths start from.")] = ".",
    workers: Annotated[int, typer.Option(help="Processes that decode before a GPU. On a CPU threads do.", min=0)] = 0,
    batch: Annotated[int, typer.Option(help="Pictures in the model at once.", min=1)] = 64,
    out: Annotated[str | None, typer.Option(help="Append the scores to this JSON-lines file too.")] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep embeddings, and use what was kept.")] = True,
    compare: Annotated[bool, typer.Option("--compare", help="Test the first model against each other one.")] = False,
    level: Annotated[float, typer.Option(help="Confidence of intervals and tests.", min=0.5, max=0.9999)] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Score models on every data set of a suite; --compare says which is better."""
    from clipkit import distributed
    from clipkit.evaluate import Result, comparison
    from clipkit.evaluate import score as work

    names = models or []
    if compare and all(name.endswith(".jsonl") for name in (*names, suite)):
        _show([], comparison.compare(comparison.from_files([*names, suite]), level), as_json)
        return
    if not names:
        raise UserError(f"eval: a model and a suite are needed, got '{suite}' alone; see `clipkit eval --help`")
    if compare and len(set(names)) < 2:
        raise UserError("--compare: two models are needed: `clipkit eval A B SUITE --compare`")
    found: list[Result] = []

    def tell(result: Result) -> None:
        found.append(result)
        if as_json and distributed.rank() == 0:
            lines([result.row])

    try:
        work(names, suite, root, workers, out, batch, cache, level, tell)
    finally:  # what was scored before something went wrong is shown
        if distributed.rank() == 0 and not as_json:
            _show([one.row for one in found], [], as_json)
    if compare and (differences := comparison.compare(comparison.sides(found), level)) and distributed.rank() == 0:
        _show([], differences, as_json)
    distributed.close()


def _show(rows: list[dict[str, Any]], differences: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        lines([*rows, *differences])
        return
    several = len({row["model"] for row in rows}) > 1
    cells = [
        (row["model"], row["task"], _title(name), _number(value), _range(row["intervals"].get(name)))
        for row in rows
        for name, value in row["scores"].items()
    ]
    if rows:
        head = ("model", "data set", "score", "value", "interval")
        table(head if several else head[1:], cells if several else [cell[1:] for cell in cells])
    if differences:
        head = ("data set", "score", "first", "second", "difference", "interval", "p", "better")
        table(head, map(_cells, differences))


def _title(score: str) -> str:
    """A score's name, and which way is up where more is not better."""
    from clipkit.certainty import smaller_is_better

    return f"{score} (less is better)" if smaller_is_better(score) else score


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["interval"]
    values = [
        f"{name} {_number(value)}" for name, value in zip((row["first"], row["second"]), row["values"], strict=True)
    ]
    return (
        row["task"], _title(row["score"]), *values, f"{row['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}",
        f"{row['p']:.3g}", row["better"] or "-",
    )  # fmt: skip


def _number(value: Any) -> str:
    """A score; those from 10 on are ranks, or counts."""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
    return "-" if value is None else str(value)


def _range(interval: list[float] | None) -> str:
    if interval is None or None in interval:
        return "-"
    low, high = interval
    digits = 1 if high >= 10 else 3 if high - low >= 0.01 else 4
    return f"{low:.{digits}f}-{high:.{digits}f}"
