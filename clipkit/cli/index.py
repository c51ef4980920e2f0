"""`clipkit index` on the command line."""

from typing import Annotated

import typer


def index(
    vectors: Annotated[str, typer.Argument(help="A folder that `clipkit embed` has written.")],
    out: Annotated[str, typer.Option(help="Folder to write; must not exist.")],
) -> None:
    """Build a search index over embeddings."""
    from clipkit.index import build

    facts = build(vectors, out)
    print(f"{out}: {facts['rows']} pictures, exact ({facts['kind']})")
