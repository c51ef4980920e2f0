"""`clipkit embed` on the command line."""

from typing import Annotated

import typer

from clipkit.cli.show import Model, Workers


def embed(
    model: Model,
    source: Annotated[str, typer.Argument(help="Shards (folder, glob, brace pattern), or a folder of pictures.")],
    out: Annotated[str, typer.Option(help="Folder to write; must not exist.")],
    caption: Annotated[str, typer.Option(help="Where captions are in shards: txt, or json:KEY.")] = "txt",
    workers: Workers = 0,
    max_bad: Annotated[float, typer.Option(help="Share of unreadable pictures to bear.", min=0, max=1)] = 0.01,
) -> None:
    """Embed a collection of pictures and its captions."""
    from clipkit.embed import embed as work

    facts = work(model, source, out, caption, workers, max_bad)
    print(f"{out}: {facts['rows']} pictures{' and their captions' if facts['texts'] else ''}")
