"""`clipkit data filter SRC OUT`: keeps the samples that a condition or a model's score asks for, as a selection."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.datatools.curate.conditions import need_duckdb, open_samples
from clipkit.datatools.curate.kept import drop_unreadable, placed, refuse_existing, write_kept
from clipkit.datatools.curate.metadata import SCORE, chosen, table_of
from clipkit.errors import UserError
from clipkit.log import Progress
from clipkit.shards import Shards


def filter(
    source: str,
    out: str,
    *,
    where: str | None = None,
    model: str | None = None,
    vectors: str | None = None,
    min_score: float | None = None,
    top: float | None = None,
    scores: str | None = None,
    caption: str = "txt",
    select: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write the selection `out` of the samples of `source` (or of an earlier selection `select` of it) that can be
    read, for which the SQL expression `where` over the table of samples is true, and whose picture and caption have a
    cosine of `min_score` at least, or are among the best `top` of 1 of those left. The cosines (clip_score) are of a
    model, or of a vectors folder that `clipkit embed` made of this source; `where` may use them too, and the Parquet
    file `scores` gets all that were computed. They are computed for what an expression without them leaves.

    Gives `of`, `kept`, `dropped` {by what: count}, which add up, `left_out` of the shards, `out` and `table`.
    Raises: UserError when an argument is wrong, something to write exists, or nothing would be kept.
    """
    _check(where, model, vectors, min_score, top, scores)
    refuse_existing(out, scores)
    held = Shards(source, workers=workers)
    path = table_of(held, caption, workers)
    numbers = start = chosen(held, select)
    uses_score = False
    if where:
        scored_by = bool(model or vectors)
        none = (np.empty(0, np.int64), np.empty(0)) if scored_by else None
        with open_samples(path, numbers, none) as samples:
            samples.check(where)
            uses_score = samples.uses_score(where)
    dropped: Counter[str] = Counter()
    numbers = drop_unreadable(path, numbers, dropped)
    if where and not uses_score:
        numbers = _where(path, numbers, where, None, dropped)
    found = None
    if model or vectors:
        found = _score(held, model, vectors, caption, workers, numbers, dropped)
        numbers = found[0]
    if where and uses_score:
        numbers = _where(path, numbers, where, found, dropped)
    if found is not None:
        numbers = _best(numbers, found, min_score, top, dropped)
    if scores and found is not None:  # first: what took hours is not lost where nothing is kept
        _write_scores(held, found, scores)
    made_by = {
        "command": "filter", "where": where, "model": model, "vectors": vectors, "min_score": min_score, "top": top,
        "caption": caption, "select": select,
    }  # fmt: skip
    facts = write_kept(held, start, numbers, out, dropped, made_by)
    return {**facts, "scores": scores, "table": str(path)}


def _check(
    where: str | None, model: str | None, vectors: str | None, min_score: float | None, top: float | None,
    scores: str | None,
) -> None:  # fmt: skip
    if model and vectors:
        raise UserError("give a model (--model) or a folder of `clipkit embed` (--vectors), and not both")
    scored = bool(model or vectors)
    if not scored:
        for name, value in (("--min-score", min_score), ("--top", top), ("--scores", scores)):
            if value is not None:
                raise UserError(f"{name}: scores are of a model; give --model MODEL or --vectors FOLDER")
        if not where:
            raise UserError("filter: nothing to filter by; give --where, or --model with --min-score or --top")
    if where:
        need_duckdb()
    if min_score is not None and top is not None:
        raise UserError("give --min-score or --top, and not both")
    if min_score is not None and not -1 <= min_score <= 1:
        raise UserError(f"--min-score: a cosine from -1 to 1 is needed, got {min_score}")
    if top is not None and not 0 < top <= 1:
        raise UserError(f"--top: a share above 0 and up to 1 is needed, such as 0.3 for the best 30 %, got {top}")
    if scored and min_score is None and top is None and scores is None and SCORE not in (where or "").lower():
        raise UserError(f"--model, --vectors: nothing uses the scores; give --min-score, --top, or {SCORE} in --where")


def _where(
    path: Path, numbers: np.ndarray, where: str, found: tuple[np.ndarray, np.ndarray] | None, dropped: Counter[str]
) -> np.ndarray:
    """The numbers for which the expression is true."""
    with open_samples(path, numbers, found) as samples:
        true, null = samples.verdicts(where)
    dropped["where is null"] += len(null)
    dropped["where is false"] += len(numbers) - len(true) - len(null)
    return true


def _score(
    held: Shards, model: str | None, vectors: str | None, caption: str, workers: int | None, numbers: np.ndarray,
    dropped: Counter[str],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(numbers that could be scored, ascending; their scores)."""
    from clipkit.datatools.curate.embedded import open_embedded

    embedded = open_embedded(held, model, vectors, caption, workers)
    found, values, done = [np.empty(0, np.int64)], [np.empty(0)], 0
    with Progress("score", len(numbers)) as bar:
        for some, scores, lost in embedded.scores(numbers):
            found.append(some)
            values.append(scores)
            dropped.update(lost)
            done += len(some) + sum(lost.values())
            bar.update(done)
    return np.concatenate(found), np.concatenate(values)


def _best(
    numbers: np.ndarray, found: tuple[np.ndarray, np.ndarray], min_score: float | None, top: float | None,
    dropped: Counter[str],
) -> np.ndarray:  # fmt: skip
    """The numbers with the scores that are asked for; of equal ones at the border those that come first."""
    scores = found[1][np.searchsorted(found[0], numbers)]
    if min_score is not None:
        dropped[f"score below {min_score:g}"] += int((scores < min_score).sum())
        return numbers[scores >= min_score]
    if top is not None:
        keep = np.sort(np.argsort(-scores, kind="stable")[: max(1, round(top * len(numbers)))])
        dropped[f"score not in the best {100 * top:g} %"] += len(numbers) - len(keep)
        return numbers[keep]
    return numbers


def _write_scores(held: Shards, found: tuple[np.ndarray, np.ndarray], out: str) -> None:
    """Write number, shard, key and score of what was scored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    places = [held.place(number) for number in found[0].tolist()]
    columns = {
        "number": found[0],
        "shard": pa.array([held.names[shard] for shard, _ in places], pa.string()),
        "key": pa.array([held.key(*place) for place in places], pa.string()),
        SCORE: found[1],
    }
    with placed(Path(out)) as path:
        pq.write_table(pa.table(columns), path)
