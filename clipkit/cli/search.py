"""`clipkit search` on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit.cli.show import Json, lines, table
from clipkit.errors import UserError

if TYPE_CHECKING:
    from clipkit.search import Hit, Index, Options

Texts = Annotated[list[str] | None, typer.Argument(help="Words to search by; of several, those that all fit.")]


def search(
    index: Annotated[str, typer.Argument(help="A folder that `clipkit index` has written.")],
    text: Texts = None,
    image: Annotated[list[str] | None, typer.Option(help="A picture to search by; may be given again.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="More like the row with this key; may be given again.")] = None,
    id: Annotated[list[int] | None, typer.Option(help="More like the row with this number (--json tells it).")] = None,
    without: Annotated[list[str] | None, typer.Option("--not", help="Words that are not wanted.")] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="One for each part in the order words, --image, --key, --id; then for each --not."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="A condition over the metadata, such as \"width > 512 and lang = 'en'\".")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many to find.", min=1)] = 5,
    unique: Annotated[float | None, typer.Option(help="Leave out what has this cosine with a better hit.")] = None,
    diverse: Annotated[float | None, typer.Option(help="0 to 1: the say of hits that differ from each other.")] = None,
    kind: Annotated[str, typer.Option(help="What is searched: image, or text for captions.")] = "image",
    batch: Annotated[
        Path | None, typer.Option(help="Queries: a text a line, or .jsonl of text, image, key, not.")
    ] = None,
    montage: Annotated[Path | None, typer.Option(help="Draw the hits into this PNG too.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to use instead of the one the index names.")] = None,
    as_json: Json = False,
) -> None:
    """Find the pictures nearest to words, pictures or rows of the index, together or without something."""
    from clipkit.search import Options, open_index, query

    options = Options(k, kind, where, unique, diverse)
    if batch is not None:
        if montage or text or image or key or id or without or weight:
            raise UserError("--batch: the queries are in the file; give no other beside it, and no --montage")
        _answer_all(open_index(index, model), batch, options)
        return
    asked = query(text, image, key, id, without, weight)
    if montage is not None:
        _refuse(montage, k)
    opened = open_index(index, model)
    hits = opened.search_many([asked], options)[0]
    _tell_left(opened, options)
    if montage is not None:
        _draw(hits, _title(text, image, key, id, without, where), montage)
    if as_json:
        lines([hit.as_dict() for hit in hits])
        return
    rows = [(str(i), f"{hit.score:.3f}", hit.key, hit.caption, hit.shard) for i, hit in enumerate(hits, 1)]
    table(("rank", "score", "key", "caption", "where"), rows)


def _answer_all(index: "Index", path: Path, options: "Options") -> None:
    from clipkit.search import batch

    asked = batch.read(path)
    _tell_left(index, options)
    lines(batch.answers(index, asked, options))


def _tell_left(index: "Index", options: "Options") -> None:
    """What a condition has left, where that is fewer than were asked for."""
    from clipkit.log import say

    if options.where and (left := index.rows_left(options.where)) < options.k:
        say(f"--where {options.where!r}: {left} of {len(index)} rows are left to search")


def _refuse(montage: Path, k: int) -> None:
    """Raises: UserError when the montage of `k` hits cannot be drawn, or written there."""
    from clipkit.page import need_matplotlib
    from clipkit.search.montage import MOST

    need_matplotlib("--montage")
    if k > MOST:
        raise UserError(f"--montage {montage}: up to {MOST} pictures are drawn, got -k {k}")
    if montage.suffix.lower() != ".png":
        raise UserError(f"--montage {montage}: a name that ends in .png is needed")
    if montage.is_dir():
        raise UserError(f"--montage {montage}: is a folder; the name of a file is needed")
    if not montage.parent.is_dir():
        raise UserError(f"--montage {montage}: there is no folder {montage.parent} to write it to")


def _draw(hits: "list[Hit]", title: str, path: Path) -> None:
    from clipkit.log import say
    from clipkit.search.montage import draw

    bad = draw(hits, title, path)
    for number, reason in bad.items():
        say(f"{path}: the picture of id {number} is not shown: {reason}")
    say(f"{path}: {len(hits) - len(bad)} pictures")


def _title(*parts: Any) -> str:
    texts, images, keys, numbers, without, where = parts
    told = [
        *(texts or []), *(Path(each).name for each in images or []), *(f"like {each}" for each in keys or []),
        *(f"like id {each}" for each in numbers or []), *(f"not {each}" for each in without or []),
    ]  # fmt: skip
    return ", ".join([*told, *([f"where {where}"] if where else [])])
