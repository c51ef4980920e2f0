"""`clipkit index` on the command line."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from clipkit.cli.show import lines, table
from clipkit.errors import UserError

USAGE = {
    "": "VECTORS --out INDEX",
    "--retune": "INDEX --retune --recall 0.9",
    "--add": "VECTORS --add INDEX",
    "--remove": "INDEX --remove KEY",
    "--compact": "INDEX --compact",
    "--merge": "INDEX INDEX --merge --out INDEX",
    "--to": "VECTORS --to lancedb:FOLDER/TABLE",
}
"""What one call can be asked to do."""
READS = {"--retune": ("--recall", "--k", "--queries"), "--compact": ("--recall", "--memory", "--k", "--engine")}
"""The options that change how a thing is done, beside building, which takes all."""
SHARED = ("", "--retune", "--compact")
"""What several processes do together."""


def index(
    vectors: Annotated[list[str], typer.Argument(help="Folders that `clipkit embed` or clip-retrieval has written.")],
    out: Annotated[str | None, typer.Option(help="Folder to write; must not exist.")] = None,
    recall: Annotated[
        float | None, typer.Option(help="Share of the true nearest to find; default is 0.95.", min=0.01, max=1)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Most memory for searching, such as 600M or 4G; default is half of all."),
    ] = None,
    k: Annotated[int | None, typer.Option(help="Answers that recall is measured over; default is 10.", min=1)] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="image or text: what to index; default is all that is there.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, flat, hnsw, or a factory string of FAISS; default is auto.")
    ] = None,
    queries: Annotated[str | None, typer.Option(help="Text file to tune with, a query a line.")] = None,
    select: Annotated[str | None, typer.Option(help="A selection of `dedup` or `cluster`: only its rows.")] = None,
    retune: Annotated[bool, typer.Option("--retune", help="Tune an index again.")] = False,
    add: Annotated[str | None, typer.Option(help="Index to add the rows of a vectors folder to.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="Key, or file of keys one a line, that an index shall not find.")
    ] = None,
    compact: Annotated[bool, typer.Option("--compact", help="Build an index anew without removed rows.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Make one index of several.")] = False,
    to: Annotated[
        str | None, typer.Option(help="Database to write vectors to: lancedb:..., qdrant:... or postgresql://...")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what index.json says instead of a table.")] = False,
) -> None:
    """Build a search index over embeddings, tuned to find a wanted share of the true nearest."""
    from clipkit import distributed

    flags = {"--retune": retune, "--add": add, "--remove": remove, "--compact": compact, "--merge": merge, "--to": to}
    what = _what(flags, vectors, out)
    wish = {"recall": recall, "k": k, "engine": engine, "memory": _bytes(memory)}
    given = {name: value for name, value in wish.items() if value is not None}
    _refuse_unread(what, {**given, "kind": kind, "queries": queries, "select": select})
    if what in ("--remove", "--to"):
        _tell(vectors[0], remove, to, as_json)
        return
    place, about = add or out or vectors[0], {}
    if what == "--retune":
        about = _retuned(vectors[0], queries, recall, k)
    elif what:
        about = _changed(what, vectors, place, given)
    else:
        about = _built(vectors, place, select, {**given, "kinds": kind, "queries": queries})
    if distributed.rank() == 0:
        lines([about]) if as_json else _show(place, about)
    distributed.close()


def _what(flags: dict[str, Any], places: list[str], out: str | None) -> str:
    """Which flag is given; "" where an index is to be built.

    Raises: UserError when several are, or the folders are not what it needs.
    """
    given = [name for name, value in flags.items() if value]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]}: one of them at a time")
    what = given[0] if given else ""
    usage = f"`clipkit index {USAGE[what]}`"
    if what in ("", "--merge"):
        if out is None:
            raise UserError(f"--out: a folder to write is needed: {usage}")
    elif len(places) != 1 or out:
        one = "index" if USAGE[what].startswith("INDEX") else "vectors folder"
        raise UserError(f"{what}: one {one} is needed, and no --out: {usage}")
    if what not in SHARED and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{what}: one process does it; type {usage} without `accelerate launch`")
    return what


def _refuse_unread(what: str, given: dict[str, Any]) -> None:
    """Raises: UserError when an option is given that does not change what is done."""
    read = READS.get(what, ())
    unread = [f"--{name}" for name, value in given.items() if value and f"--{name}" not in read]
    if what and unread:
        takes = f"; it takes {', '.join(read)}" if read else ""
        raise UserError(f"{what}: {unread[0]} changes nothing here{takes}: `clipkit index {USAGE[what]}`")


def _bytes(memory: str | None) -> int | None:
    from clipkit.index import choose

    return None if memory is None else choose.memory_of(memory)


def _built(vectors: list[str], out: str, select: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    from clipkit.index import build
    from clipkit.vectors import selection

    return build(vectors if select is None else selection.rows_of_one(vectors, select), out, **asked)


def _retuned(place: str, queries: str | None, recall: float | None, k: int | None) -> dict[str, Any]:
    from clipkit.index import remeasure

    return remeasure(place, recall=recall, k=k, queries=queries)


def _changed(what: str, places: list[str], place: str, asked: dict[str, Any]) -> dict[str, Any]:
    from clipkit.index.add import add
    from clipkit.index.compact import compact
    from clipkit.index.merge import merge

    if what == "--add":
        return add(places[0], place)
    return merge(places, place) if what == "--merge" else compact(place, **asked)


def _tell(place: str, remove: list[str] | None, to: str | None, as_json: bool) -> None:
    """Remove keys, or export; and what came of it."""
    from clipkit.index.exports import export
    from clipkit.index.remove import remove as remove_keys

    if to is not None:
        written = export(place, to)
        if as_json:
            lines([written])
        else:
            print(f"{place}: {written['rows']:,} rows are written", *written["search"], sep="\n")
        return
    told = remove_keys(place, remove or [])
    if as_json:
        lines([told])
    else:
        unknown = f"; unknown keys: {told['unknown']}" if told["unknown"] else ""
        print(f"{place}: {told['removed']} rows are removed now, {told['all']} in all{unknown}")


def _show(place: str, about: dict[str, Any]) -> None:
    """The table of what was tried, and what was taken."""
    rows = [row for kind, facts in about["kinds"].items() for row in _rows(kind, facts)]
    if rows:
        table(("index", "setting", "captions", "prompts", "pictures", "CPU ms", ""), rows)
    for kind, facts in about["kinds"].items():
        found = facts["recall"]
        size = sum((Path(place) / name).stat().st_size for name in facts["files"]) / 1e6
        measured = "recall not measured"
        if found:
            told = "" if found["on"] == "all rows compared" else f" of {found['queries']} {found['on']}"
            measured = f"recall@{found['k']} {found['value']:.3f}{told}"
        print(
            f"{place}: {about['rows']} rows, {kind}.index {facts['factory']} {size:.0f} MB ({facts['why']}): {measured}"
        )


def _rows(kind: str, facts: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            kind,
            " ".join(f"{name}={value}" for name, value in row["knobs"].items() if name != "k"),
            *(f"{row['recall'][on]:.3f}" if on in row["recall"] else "" for on in ("captions", "prompts", "pictures")),
            f"{row['ms']:.2f}",
            "taken" if row["knobs"] == facts["knobs"] else "",
        )
        for row in facts["table"]
    ]
