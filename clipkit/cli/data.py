"""`clipkit data ...`: making, looking at and choosing training data."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli.show import lines, table

app = typer.Typer(help="Make, look at and choose training data.", no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]
Source = Annotated[str, typer.Argument(help="Shards: a folder, a glob, a brace pattern, or addresses (s3://...).")]
Workers = Annotated[int | None, typer.Option(help="Processes; default is the number of cores.", min=1)]


@app.command()
def index(
    source: Source,
    out: Annotated[str | None, typer.Option(help="Folder for the indexes, which then stands for the shards.")] = None,
    verify: Annotated[
        str, typer.Option(help="Leave out pictures whose header (header) or pixels (decode) cannot be read.")
    ] = "none",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Find where every sample lies; training does it by itself on first use."""
    from clipkit.datatools.indexing import index_all

    facts = index_all(source, out, verify, workers)  # type: ignore[arg-type]
    if as_json:
        lines([facts])
        return
    left_out = {f"left out: {reason}": count for reason, count in facts.pop("left_out").items()}
    table(("what", "number"), [(name, f"{count:,}") for name, count in {**facts, **left_out}.items()])


@app.command()
def openmoji(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    seed: Annotated[int, typer.Option(help="Of the split and the order.")] = 0,
) -> None:
    """3,799 emoji with their names as WebDataset shards: a small real set, made without a download."""
    from clipkit.datatools.openmoji import write
    from clipkit.log import Progress

    with Progress("openmoji", 1) as bar:

        def show(done: int, total: int) -> None:
            bar.resize(total)
            bar.update(done)

        facts = write(out, seed, show)
    print(f"{out}: {facts['train']} pairs to train on, {facts['test']} held out, {facts['left_out']} left out")
