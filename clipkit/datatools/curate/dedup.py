"""`clipkit data dedup SRC OUT`: of pictures that are the same, or nearly, keeps one; or none that another set has."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipkit.datatools.curate.embedded import (
    ByFolder,
    ByModel,
    Embedded,
    Rows,
    open_embedded,
    pictures_of,
)
from clipkit.datatools.curate.kept import drop_unreadable, refuse_existing, write_kept
from clipkit.datatools.curate.metadata import chosen, table_of
from clipkit.errors import UserError
from clipkit.log import Progress, say
from clipkit.page import need_matplotlib
from clipkit.shards import Shards, open_source
from clipkit.vectors import groups_picture, near
from clipkit.vectors.joined import same_model

Rule = Literal["first", "largest", "best"]
RULES = ("first", "largest", "best")
BYTES = "bytes of the pictures"


@dataclass
class _Work:
    """What one call is made of."""

    held: Shards
    caption: str
    workers: int | None
    embedded: Embedded | None
    folder: Path
    dropped: Counter[str] = field(default_factory=Counter)


def dedup(
    source: str,
    out: str,
    *,
    exact: bool = False,
    model: str | None = None,
    vectors: str | None = None,
    threshold: float = 0.95,
    keep: Rule = "first",
    against: str | None = None,
    caption: str = "txt",
    select: str | None = None,
    picture: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write the selection `out` of the samples of `source` (or of an earlier selection `select` of it) without
    duplicates: pictures of the same bytes (`exact`), or pairs and chains of pairs whose embeddings, of a model or of a
    vectors folder that `clipkit embed` made of this source, have a cosine of `threshold` at least.

    Of each group one is kept by `keep`: the `first`, the `largest` picture, or the `best` by cosine with its caption;
    of equals the first. With `against` only what is in another set or near to it is removed, to keep a test set apart:
    shards or pictures, or with `vectors` a vectors folder. `picture` is a PNG that shows the largest groups.

    Gives `of`, `kept`, `dropped` {by what: count}, which add up, `left_out` of the shards, `search` (how pairs were
    found), `out`, and without `against` `groups`, `largest_group` and `picture`.
    Raises: UserError when an argument is wrong, something to write exists, or nothing would be kept.
    """
    _check(exact, model, vectors, threshold, keep, against, picture)
    refuse_existing(out, picture)
    if picture:
        need_matplotlib("--picture")
    held = Shards(source, workers=workers)
    start = chosen(held, select)
    embedded = None if exact else open_embedded(held, model, vectors, caption, workers)
    if embedded is not None and keep == "best":
        next(embedded.scores(start[:1]), None)  # captions that are missing are told before the work, not behind it
    work = _Work(held, caption, workers, embedded, Path(out).parent)
    about = {
        "command": "dedup", "exact": exact, "model": model, "vectors": vectors, "keep": keep, "against": against,
        "threshold": None if exact else threshold, "select": select,
    }  # fmt: skip
    if against is not None:
        numbers, how = _apart(work, start, against, threshold)
        return {**write_kept(held, start, numbers, out, work.dropped, about), "search": how}
    numbers, first, how = _grouped(work, start, threshold)
    stay = near.one_of_each(first, _worth(work, numbers, near.grouped(first), keep))
    work.dropped["duplicate"] += len(numbers) - len(stay)
    facts = write_kept(held, start, numbers[stay], out, work.dropped, about)
    sizes = np.bincount(first, minlength=1)
    count, most = int((sizes > 1).sum()), int(sizes.max())
    if picture:
        shown = [[int(numbers[at]) for at in each] for each in near.largest(first, stay, groups_picture.SHOWN)]
        title = groups_picture.title(count, len(numbers) - len(stay))
        groups_picture.draw(shown, title, lambda number: held.key(*held.place(number)), held.image, picture)
    return {
        **facts, "groups": count, "largest_group": most if count else 0, "search": how, "picture": picture,
    }  # fmt: skip


def _check(
    exact: bool, model: str | None, vectors: str | None, threshold: float, rule: str, against: str | None,
    picture: str | None,
) -> None:  # fmt: skip
    if sum((exact, bool(model), bool(vectors))) != 1:
        raise UserError("dedup: one of --exact, --model MODEL and --vectors FOLDER is needed")
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold: a cosine above 0 and up to 1 is needed, got {threshold}")
    if rule not in RULES:
        raise UserError(f"--keep: one of {', '.join(RULES)} is needed, got '{rule}'")
    if exact and rule == "best":
        raise UserError("--keep best: is by a model's scores; give --model or --vectors in place of --exact")
    if against is not None and (picture or rule != "first"):
        raise UserError("--against: removes all that the other set has, and no groups; leave --keep and --picture out")


def _grouped(work: _Work, start: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, str]:
    """(numbers that can be compared, ascending; the place among them of the first of each one's group; how)."""
    if work.embedded is None:
        numbers, hashes = _hashes(work, start)
        codes = hashes.combine_chunks().dictionary_encode().indices.to_numpy()
        _, first, place = np.unique(codes, return_index=True, return_inverse=True)
        return numbers, first[place], BYTES
    with tempfile.TemporaryFile(dir=work.folder) as file:
        numbers, rows = _gathered(work.embedded.images(start), len(start), work.embedded.width, file, work.dropped)
        with Progress("compare", len(numbers)) as bar:
            first, how = near.groups(rows, threshold, bar.update)
        del rows  # mapped from the file
    return numbers, first, how


def _hashes(work: _Work, start: np.ndarray) -> tuple[np.ndarray, Any]:
    """(numbers of the pictures that can be read, the hashes of their bytes as an Arrow column)."""
    import pyarrow.parquet as pq

    path = table_of(work.held, work.caption, work.workers)
    numbers = drop_unreadable(path, start, work.dropped, pictures=True)
    return numbers, pq.read_table(path, columns=["sha1"]).column("sha1").take(numbers)


def _gathered(
    parts: Iterable[Rows], most: int, width: int, file: Any, dropped: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, their embeddings [n, width] in float16, mapped from the file)."""
    rows = np.memmap(file, np.float16, "w+", shape=(max(most, 1), width))
    found, done = [np.empty(0, np.int64)], 0
    with Progress("embed", most) as bar:
        seen = 0
        for numbers, some, lost in parts:
            rows[done : done + len(numbers)] = some
            found.append(numbers)
            done += len(numbers)
            seen += len(numbers) + sum(lost.values())
            dropped.update(lost)
            bar.update(seen)
    return np.concatenate(found), rows[:done]


def _worth(work: _Work, numbers: np.ndarray, grouped: np.ndarray, rule: str) -> np.ndarray:
    """What decides which of a group is kept, float64 [n]; only of those that are in one."""
    worth = np.zeros(len(numbers))
    if rule != "first" and grouped.any():
        worth[grouped] = (_areas if rule == "largest" else _scores)(work, numbers[grouped])
    return worth


def _areas(work: _Work, numbers: np.ndarray) -> np.ndarray:
    """Pixels of the pictures."""
    import pyarrow.parquet as pq

    path = table_of(work.held, work.caption, work.workers)
    table = pq.read_table(path, columns=["width", "height"]).take(numbers)
    width, height = (table.column(name).fill_null(0).to_numpy().astype(np.int64) for name in ("width", "height"))
    return width * height


def _scores(work: _Work, numbers: np.ndarray) -> np.ndarray:
    """Cosines of picture and caption; -2 for those that have no caption."""
    assert work.embedded is not None
    worth = np.full(len(numbers), -2.0)
    for some, scores, _ in work.embedded.scores(numbers):
        worth[np.searchsorted(numbers, some)] = scores
    return worth


def _apart(work: _Work, start: np.ndarray, against: str, threshold: float) -> tuple[np.ndarray, str]:
    """(numbers of those that are not in the other set, nor near to it; how that was found)."""
    if work.embedded is None:
        from pyarrow import compute

        numbers, hashes = _hashes(work, start)
        hit = compute.is_in(hashes, value_set=_other_hashes(work, against)).to_numpy()  # type: ignore[attr-defined]
        work.dropped[f"in {against}"] += int(hit.sum())
        return numbers[~hit], BYTES
    is_near, how = near.near_to(_others(work, against), threshold)
    left, done = [np.empty(0, np.int64)], 0
    with Progress("compare", len(start)) as bar:
        for numbers, rows, lost in work.embedded.images(start):
            work.dropped.update(lost)
            hit = is_near(rows)
            work.dropped[f"near to {against}"] += int(hit.sum())
            left.append(numbers[~hit])
            done += len(numbers) + sum(lost.values())
            bar.update(done)
    return np.concatenate(left), how


def _other_hashes(work: _Work, against: str) -> Any:
    """The hashes of the pictures of the other set, as an Arrow array."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    other = open_source(against)
    if isinstance(other, Shards):
        path = table_of(other, "txt", work.workers)
        return pq.read_table(path, columns=["sha1"]).column("sha1").combine_chunks()
    return pa.array([hashlib.sha1(other.image(number)).hexdigest() for number in range(len(other))], pa.string())


def _others(work: _Work, against: str) -> near.Array:
    """The embeddings [m, width] of the other set.

    Raises: UserError when they are of another model, or there are none.
    """
    embedded = work.embedded
    if isinstance(embedded, ByFolder):
        other = pictures_of(against)
        same_model(embedded.vectors, other)
        return near.Of(other, "image")
    assert isinstance(embedded, ByModel)
    return _embedded_now(embedded, against)


def _embedded_now(embedded: ByModel, against: str) -> np.ndarray:
    other = open_source(against)
    with Progress(f"embed {against}", len(other)) as bar:
        rows, done, lost = [], 0, Counter[str]()
        for numbers, some, bad in ByModel(embedded.model, other, "txt", embedded.workers).images(np.arange(len(other))):
            rows.append(some.astype(np.float16))
            lost.update(bad)
            done += len(numbers) + sum(bad.values())
            bar.update(done)
    if lost:
        say(f"{against}: {sum(lost.values())} pictures cannot be read and are compared with nothing")
    found = np.concatenate(rows)
    if not len(found):
        raise UserError(f"{against}: no picture of it can be read, so that nothing can be told apart from it")
    return found
