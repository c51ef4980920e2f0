"""`clipkit embed` on the command line."""

from typing import Annotated, Any

import typer

from clipkit.cli.show import Model


def embed(
    model: Model,
    source: Annotated[
        str,
        typer.Argument(
            help="Shards (folder, glob, brace pattern, address), a folder of pictures, a table that names pictures "
            "(CSV, TSV, JSON lines, Parquet, captions in JSON), or a .txt of captions, one a line."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder to write. One that was not finished is gone on with.")],
    caption: Annotated[
        str | None, typer.Option(help="Where captions are: txt or json:KEY in shards, a column in tables.")
    ] = None,
    fields: Annotated[
        str, typer.Option(help="Keys of the .json of shards, or columns, to keep: NAME,NAME,... for filters later.")
    ] = "",
    images: Annotated[str | None, typer.Option(help="Folder that the pictures of a table lie in.")] = None,
    what: Annotated[
        str | None, typer.Option(help="images, texts or both; without it texts too where there are captions.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="How rows are kept: float16 or float32.")] = "float16",
    part: Annotated[
        int | None, typer.Option(help="Samples of one file; 10,000, or 100,000 where there are 10 million.", min=1)
    ] = None,
    decode: Annotated[
        str, typer.Option(help="exact, or fast: large JPEGs at a reduced scale, for nearly the same rows.")
    ] = "exact",
    batch: Annotated[int | None, typer.Option(help="Samples in the model at once.", min=1)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode before a GPU; all cores. On a CPU threads do.", min=0)
    ] = None,
    max_bad: Annotated[float, typer.Option(help="Share of samples that may be unreadable.", min=0, max=1)] = 0.01,
) -> None:
    """Embed a collection of pictures and its captions; on several processes: accelerate launch -m clipkit.embed."""
    from clipkit import distributed
    from clipkit.embed import Job, run

    facts = run(
        Job(
            model, source, out, caption=caption, fields=fields, images=images, what=what, dtype=dtype, part=part,
            decode=decode, batch=batch, workers=workers, max_bad=max_bad,
        )
    )  # fmt: skip
    if facts:
        print(told(out, facts))
    distributed.close()


def told(out: str, facts: dict[str, Any]) -> str:
    """What is there now: captions are fewer where pictures have none."""
    counts = {"image": (facts["rows"], "picture"), "text": (facts["captions"], "caption")}
    said = (f"{n} {what}{'' if n == 1 else 's'}" for n, what in (counts[kind] for kind in facts["kinds"]))
    return f"{out}: {' and '.join(said)}"
