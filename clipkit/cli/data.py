"""`clipkit data ...`: making, looking at and choosing training data."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from clipkit.cli.show import Json, lines, table, told

app = typer.Typer(help="Make, look at and choose training data.", no_args_is_help=True, rich_markup_mode=None)

Source = Annotated[str, typer.Argument(help="Shards: a folder, a glob, a brace pattern, or addresses (s3://...).")]
Workers = Annotated[int | None, typer.Option(help="Processes; default is the number of cores.", min=1)]


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="Folder of images, CSV/TSV/JSONL/Parquet, COCO captions, or a saved Hugging Face set.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    captions: Annotated[
        Literal["txt", "name"] | None, typer.Option(help="Of a folder: txt (beside the images) or name (of the file).")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Column of a table with paths or pictures.")] = None,
    caption: Annotated[str | None, typer.Option(help="Column of a table with captions.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder that a table's paths start from.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a saved Hugging Face set.")] = None,
    size: Annotated[int | None, typer.Option(help="Shrink larger images to this many pixels.")] = None,
    resize: Annotated[
        Literal["shortest", "longest", "none"],
        typer.Option(help="Which side that is: shortest or longest; none shrinks nothing."),
    ] = "shortest",
    quality: Annotated[int, typer.Option(help="JPEG quality of shrunk images.")] = 95,
    verify: Annotated[
        Literal["header", "decode"] | None, typer.Option(help="Check each image's header, or decode it.")
    ] = None,
    per_shard: Annotated[int, typer.Option(help="Samples of a shard.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the shuffled order.")] = 0,
    shuffle: Annotated[bool, typer.Option(help="Shuffle, or keep the source's order.")] = True,
    val: Annotated[float, typer.Option(help="Share of the groups that goes into OUT/val.")] = 0.0,
    group: Annotated[str | None, typer.Option(help="Column whose rows stay on one side of the split.")] = None,
    workers: Workers = None,
    max_bad: Annotated[float, typer.Option(help="Share of unreadable rows to bear.")] = 0.01,
    as_json: Json = False,
) -> None:
    """Make shards of any image-caption source; a pack that was stopped goes on."""
    from clipkit.datatools.pack import pack as work

    facts = work(
        source, out, captions=captions, image=image, caption=caption, root=root, split=split, size=size,
        resize=resize, quality=quality, verify=verify, per_shard=per_shard, seed=seed if shuffle else None, val=val,
        group=group, workers=workers, max_bad=max_bad,
    )  # fmt: skip
    if as_json:
        lines([facts])
        return
    made = [
        (str(out / ("" if name == "all" else name)), f"{s['samples']:,} samples in {s['shards']} shards")
        for name, s in facts["splits"].items()
    ]
    left_out = [(f"left out: {reason}", f"{count:,}") for reason, count in facts["left_out_because"].items()]
    passed = [(f"passed over: {kind}", f"{count:,}") for kind, count in facts["ignored"].items()]
    table(("what", "number"), [*made, *left_out, *passed])


@app.command()
def index(
    source: Source,
    out: Annotated[str | None, typer.Option(help="Folder for the indexes, which then stands for the shards.")] = None,
    verify: Annotated[
        Literal["none", "header", "decode"],
        typer.Option(help="Leave out pictures whose header (header) or pixels (decode) cannot be read."),
    ] = "none",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Find where every sample lies; training does it by itself on first use."""
    from clipkit.datatools.indexing import index_all

    facts = index_all(source, out, verify, workers)
    if as_json:
        lines([facts])
        return
    left_out = {f"left out: {reason}": count for reason, count in facts.pop("left_out").items()}
    table(("what", "number"), [(name, f"{count:,}") for name, count in {**facts, **left_out}.items()])


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="Shards, or a training recipe, whose data are looked at.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ..., as in training")] = None,
    caption: Annotated[str | None, typer.Option(help="Where captions are: txt, or json:KEY.")] = None,
    select: Annotated[str | None, typer.Option(help="A selection of `filter` or `dedup`.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pairs of one step.", min=1)] = None,
    model: Annotated[str | None, typer.Option(help="Architecture whose tokenizer and picture size count.")] = None,
    context: Annotated[int | None, typer.Option(help="Longest text in tokens.", min=1)] = None,
    sample: Annotated[int, typer.Option(help="Samples of each source to look at.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="Of which samples these are.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that look; 0 is this one.", min=0)] = 0,
    picture: Annotated[str | None, typer.Option(help="Write a contact sheet to this PNG file.")] = None,
    html: Annotated[str | None, typer.Option(help="Write a page to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a run would meet in its data, before it starts."""
    from clipkit.datatools import check as work

    report = work.check(
        source, overrides=overrides or (), caption=caption, select=select, batch=batch, model=model, context=context,
        sample=sample, seed=seed, workers=workers, picture=picture, html=html,
    )  # fmt: skip
    if as_json:
        lines([report.as_dict()])
    else:
        table(("source", "what", "value"), work.rows(report))
    report.refuse_bad()


Caption = Annotated[str, typer.Option(help="Where captions are: txt, or json:KEY.")]
Select = Annotated[str | None, typer.Option(help="Start from this selection.")]
Model = Annotated[str | None, typer.Option(help="Run folder or open_clip model to embed with.")]
Vectors = Annotated[str | None, typer.Option(help="Embeddings that `clipkit embed` has made of these shards.")]
Selection = Annotated[str, typer.Option("--out", help="The selection to write (Parquet); must not exist.")]


@app.command()
def stats(
    source: Source,
    where: Annotated[str | None, typer.Option(help="Only samples for which this SQL condition holds.")] = None,
    by: Annotated[str | None, typer.Option(help="Column to group by.")] = None,
    caption: Caption = "txt",
    select: Select = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Say what is known of the samples: columns, their ranges and most frequent values."""
    from clipkit.datatools.curate.stats import rows
    from clipkit.datatools.curate.stats import stats as work

    facts = work(source, caption=caption, select=select, where=where, by=by, workers=workers)
    if as_json:
        lines([facts])
        return
    table(("of", "what", "value"), rows(facts))


@app.command()
def filter(
    source: Source,
    out: Selection,
    where: Annotated[str | None, typer.Option(help='SQL condition, such as "width >= 256"; see `stats`.')] = None,
    model: Model = None,
    vectors: Vectors = None,
    min_score: Annotated[float | None, typer.Option(help="Least CLIP score to keep.")] = None,
    top: Annotated[float | None, typer.Option(help="Share to keep, best CLIP scores first.")] = None,
    scores: Annotated[str | None, typer.Option(help="Write the CLIP scores to this Parquet file too.")] = None,
    caption: Caption = "txt",
    select: Select = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Select samples by metadata or by CLIP score."""
    from clipkit.datatools.curate.filter import filter as work

    facts = work(
        source, out, where=where, model=model, vectors=vectors, min_score=min_score, top=top, scores=scores,
        caption=caption, select=select, workers=workers,
    )  # fmt: skip
    told(facts, as_json)


@app.command()
def dedup(
    source: Source,
    out: Selection,
    exact: Annotated[bool, typer.Option("--exact", help="Pictures of the same bytes; needs no model.")] = False,
    model: Model = None,
    vectors: Vectors = None,
    threshold: Annotated[float, typer.Option(help="Cosine from which two pictures count as one.")] = 0.95,
    keep: Annotated[
        Literal["first", "largest", "best"], typer.Option(help="Which to keep: best is by CLIP score.")
    ] = "first",
    against: Annotated[str | None, typer.Option(help="Remove what is near to this other set instead.")] = None,
    caption: Caption = "txt",
    select: Select = None,
    picture: Annotated[str | None, typer.Option(help="Draw some groups to this PNG file.")] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Select one of each group of (near-)duplicates."""
    from clipkit.datatools.curate.dedup import dedup as work

    facts = work(
        source, out, exact=exact, model=model, vectors=vectors, threshold=threshold, keep=keep, against=against,
        caption=caption, select=select, picture=picture, workers=workers,
    )  # fmt: skip
    told(facts, as_json)


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
