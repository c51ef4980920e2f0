"""`clipkit search` on the command line."""

from typing import Annotated

import typer

from clipkit.cli.show import Json, lines, table


def search(
    index: Annotated[str, typer.Argument(help="A folder that `clipkit index` has written.")],
    text: Annotated[str | None, typer.Argument(help="Words to search by.")] = None,
    image: Annotated[str | None, typer.Option(help="A picture to search by.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many to find.", min=1)] = 5,
    model: Annotated[str | None, typer.Option(help="Model to use instead of the one the index names.")] = None,
    as_json: Json = False,
) -> None:
    """Find the pictures nearest to words or to a picture."""
    from clipkit.search import open_index

    hits = open_index(index, model).search(text, image, k)
    if as_json:
        lines([hit.as_dict() for hit in hits])
        return
    table(("score", "key", "caption", "where"), [(f"{hit.score:.3f}", hit.key, hit.caption, hit.shard) for hit in hits])
