"""What is known of each sample, read by many processes into parts of a table, one Arrow file each."""

import hashlib
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit import images
from clipkit.errors import UserError, reason_of
from clipkit.shards import Shards, caption_of, json_object

PART = 4096  # samples of a part: some 0.3 s of work
ALONE = 40_000  # local samples up to which one process is done (70 us each) before others have started (4 s)
MOST_KEYS = 500  # columns that keys of .json files may make; the most frequent are kept
OURS = {
    "number": "int64", "shard": "string", "key": "string", "caption": "string", "caption_words": "int32",
    "caption_chars": "int32", "width": "int32", "height": "int32", "bytes": "int64", "format": "string",
    "sha1": "string", "problem": "string",
}  # fmt: skip
TYPES = {"null": "string", "bool": "bool", "int": "int64", "float": "float64", "text": "string"}
SUB = "\0"
"""Between a key of a `.json` and one of the object under it."""

_FORMATS = ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"RIFF", "WEBP"), (b"GIF8", "GIF"), (b"BM", "BMP"))


@dataclass(frozen=True)
class Part:
    """A part in its file: its rows, the kind of values and the number of samples of each key of the `.json` files, and
    how many keys were beyond MOST_KEYS."""

    path: Path
    rows: int
    kinds: dict[str, str]
    seen: dict[str, int]
    beyond: int


def unify(one: str, two: str) -> str:
    """The kind that holds the values of two kinds: a number if both are, else text."""
    if one == two or two == "null":
        return one
    if one == "null":
        return two
    return "float" if {one, two} == {"int", "float"} else "text"


def read_parts(source: Shards, caption: str, folder: Path, workers: int) -> Iterator[Part]:
    """Read all samples, part by part in order, on `workers` processes; closing it stops them.

    Raises: UserError when a worker was killed.
    """
    spans = [(first, min(first + PART, len(source))) for first in range(0, len(source), PART)]
    workers = min(workers, len(spans))
    far = any(source.files.is_remote(shard) for shard in range(len(source.files)))
    if workers <= 1 or (len(source) <= ALONE and not far):
        yield from (_make(source, caption, folder, *span) for span in spans)
        return
    context = multiprocessing.get_context("forkserver")  # imports once for all, and forks where no threads are
    context.set_forkserver_preload(["clipkit.datatools.curate.metadata_read", "pyarrow"])
    pool = ProcessPoolExecutor(workers, context, _begin, (source, caption, folder))
    try:
        yield from pool.map(_work, spans)
    except BrokenProcessPool as error:
        what = "a worker process was killed, perhaps for want of memory; start again with fewer --workers"
        raise UserError(f"{source.pattern}: {what}") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_held: list[tuple[Shards, str, Path]] = []


def _begin(source: Shards, caption: str, folder: Path) -> None:
    """Make this process ready to read; it ends when its parent does, and leaves Ctrl-C to that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _held.append((source, caption, folder))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(span: tuple[int, int]) -> Part:
    return _make(*_held[-1], *span)


def _make(source: Shards, caption: str, folder: Path, first: int, stop: int) -> Part:
    """Read the samples first .. stop - 1 into a file."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in OURS}
    found: dict[str, dict[int, Any]] = {}
    for number in range(first, stop):
        facts, keys = facts_of(source, number, caption)
        for name, values in columns.items():
            values.append(facts.get(name))
        for name, value in keys.items():
            found.setdefault(name, {})[number - first] = value
    names = sorted(found, key=lambda name: (-len(found[name]), name))[:MOST_KEYS]
    arrays = {name: pa.array(columns[name], getattr(pa, OURS[name])()) for name in OURS}
    kinds = {}
    for name in names:
        kinds[name], values = _column(found[name], stop - first)
        arrays[f"{SUB}{name}"] = pa.array(values, pa.type_for_alias(TYPES[kinds[name]]))
    table = pa.table(arrays)
    path = folder / f"{first:012d}.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return Part(path, len(table), kinds, {name: len(found[name]) for name in names}, len(found) - len(names))


def facts_of(source: Shards, number: int, caption: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the columns of ours hold, the scalars of its `.json`) of a sample; what cannot be read is absent, and
    `problem` has the first reason: of the picture, of a caption that is there and unusable, of the `.json`."""
    shard, row = source.place(number)
    facts: dict[str, Any] = {"number": number, "shard": source.names[shard], "key": source.key(shard, row)}
    problems = []
    try:
        data = source.read(shard, row, "image")
        facts |= {"bytes": len(data), "sha1": hashlib.sha1(data).hexdigest()}
        facts["width"], facts["height"] = images.size_of(data)
        facts["format"] = next((name for magic, name in _FORMATS if data.startswith(magic)), None)
    except (ValueError, OSError) as error:
        problems.append(reason_of(error))
    if _has(source, shard, row, "txt" if caption == "txt" else "json"):
        try:
            text = caption_of(source, shard, row, caption)[0]
            facts |= {"caption": text, "caption_words": len(text.split()), "caption_chars": len(text)}
        except (ValueError, OSError) as error:
            problems.append(reason_of(error))
    keys = {}
    if _has(source, shard, row, "json"):
        try:
            keys = _scalars(json_object(source.read(shard, row, "json")))
        except (ValueError, OSError) as error:
            problems.append(reason_of(error))
    return facts | ({"problem": problems[0]} if problems else {}), keys


def _has(source: Shards, shard: int, row: int, member: str) -> bool:
    try:
        return source.span(shard, row, member)[0] >= 0
    except ValueError:
        return False


def _scalars(tree: dict[str, Any]) -> dict[str, Any]:
    """The texts, numbers, truths and nulls of an object and of those right under it, named KEY or KEY, SUB, KEY."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{name}{SUB}{below}": v for below, v in value.items() if _is_scalar(v)}
        elif _is_scalar(value):
            flat[name] = value
    return {_clean(name): _clean(value) for name, value in flat.items()}


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _clean(value: Any) -> Any:
    """What Arrow and SQL can hold: JSON can spell half letters, and Python's reader knows NaN and Infinity."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _column(found: dict[int, Any], rows: int) -> tuple[str, list[Any]]:
    """(kind, values) of a column with these values by row."""
    kinds = Counter(map(_kind, found.values()))
    kind = "null"
    for one in kinds:
        kind = unify(kind, one)
    values: list[Any] = [None] * rows
    for row, value in found.items():
        values[row] = _text(value) if kind == "text" else float(value) if kind == "float" and value else value
    return kind, values


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(1 << 63) <= value < 1 << 63 else "text"
    return "float" if isinstance(value, float) else "text"


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
