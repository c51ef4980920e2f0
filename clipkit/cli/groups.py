"""`clipkit dedup` and `clipkit cluster` on the command line."""

from typing import Annotated, Literal

import typer

from clipkit.cli.show import Json, told

Vectors = Annotated[str, typer.Argument(help="A folder that `clipkit embed` has written.")]
Kind = Annotated[
    Literal["image", "text"] | None, typer.Option(help="Whose embeddings count; default is pictures where there are.")
]
Shards = Annotated[str | None, typer.Option(help="The shards of the pictures, where they lie elsewhere now.")]


def dedup(
    vectors: Vectors,
    out: Annotated[str, typer.Option(help="The selection to write (Parquet); must not exist.")],
    threshold: Annotated[float, typer.Option(help="Cosine from which two rows count as one.")] = 0.95,
    keep: Annotated[
        Literal["first", "largest", "best"], typer.Option(help="Which to keep: best is by cosine with its caption.")
    ] = "first",
    kind: Kind = None,
    picture: Annotated[str | None, typer.Option(help="Draw the largest groups to this PNG file.")] = None,
    shards: Shards = None,
    as_json: Json = False,
) -> None:
    """Select one of each group of near-duplicates of what was embedded."""
    from clipkit.groups import dedup as work

    told(work(vectors, out, threshold=threshold, keep=keep, kind=kind, picture=picture, shards=shards), as_json)


def cluster(
    vectors: Vectors,
    out: Annotated[str, typer.Option(help="Folder to write; must not exist.")],
    clusters: Annotated[
        int | None, typer.Option(help="How many; default is the root of the number of rows.", min=1)
    ] = None,
    balance: Annotated[int | None, typer.Option(help="Select at most so many of each cluster.", min=1)] = None,
    pick: Annotated[
        Literal["spread", "nearest"], typer.Option(help="Which these are: spread evenly, or nearest to the centre.")
    ] = "spread",
    kind: Kind = None,
    seed: Annotated[int, typer.Option(help="Of the first centres.")] = 0,
    shards: Shards = None,
    as_json: Json = False,
) -> None:
    """Sort what was embedded into clusters, and show what they are."""
    from clipkit.groups import cluster as work

    made = work(
        vectors, out, clusters=clusters, balance=balance, pick=pick, kind=kind, seed=seed, shards=shards
    )  # fmt: skip
    told(made, as_json)
