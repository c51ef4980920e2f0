"""`clipkit cluster VECTORS --out CLUSTERS`: rows in clusters by spherical k-means, and a balanced selection of them."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipkit.errors import StorageError, UserError
from clipkit.groups import cluster_page
from clipkit.groups.rows import rows_of_kind
from clipkit.log import Progress
from clipkit.vectors import Vectors, near, selection
from clipkit.vectors.folder import BLOCK
from clipkit.vectors.lists import nearest_centres, spherical

ROUNDS = 20
MOST = 10_000  # clusters that are made when nobody says how many
PICTURES, CAPTIONS = 8, 3  # that tell of a cluster

Pick = Literal["spread", "nearest"]


@dataclass(frozen=True)
class _Sorted:
    """Rows `numbers` (int64 [n], ascending) of a source in clusters: `of` (int64 [n]), `cosine` with its centre
    (float32 [n]), `centres` (float32 [C, D]); cluster 0 is the largest, none is empty."""

    source: Vectors
    numbers: np.ndarray
    of: np.ndarray
    cosine: np.ndarray
    centres: np.ndarray


def cluster(
    folder: str,
    out: str,
    *,
    clusters: int | None = None,
    balance: int | None = None,
    pick: Pick = "spread",
    kind: str | None = None,
    seed: int = 0,
    shards: str | None = None,
) -> dict[str, Any]:
    """Sort the rows of a vectors folder into `clusters` (default: the root of their number, at most 10,000) around
    means of a sample, and write the folder `out`: clusters.parquet (number, key, cluster, cosine with its centre),
    centres.npy [C, D], clusters.json and clusters.html, which show what each is. Cluster 0 is the largest. Rows that
    hold nothing, as those of missing captions, are left out.

    `balance` writes kept.parquet as well: a selection of at most so many of each, `spread` evenly from the nearest to
    the farthest from its centre, or the `nearest`. `kind` and `shards` are as in `dedup`.
    Gives `of`, `left_out`, `clusters`, `largest`, `smallest`, `cosine` (mean, with its centre), `out`, and with
    `balance` `kept` and `read_by`. Raises: UserError when an argument is wrong or `out` exists.
    """
    for name, value in (("--clusters", clusters), ("--balance", balance)):
        if value is not None and value < 1:
            raise UserError(f"{name}: a number from 1 on is needed, got {value}")
    if pick not in ("spread", "nearest"):
        raise UserError(f"--pick: one of spread, nearest is needed, got '{pick}'")
    selection.refuse_existing(out)
    source, kind = rows_of_kind(folder, kind)
    found = _sorted(source, kind, clusters, seed)
    sizes = np.bincount(found.of)
    facts: dict[str, Any] = {
        "of": len(source), "left_out": len(source) - len(found.numbers), "clusters": len(sizes),
        "largest": int(sizes[0]), "smallest": int(sizes[-1]), "cosine": round(float(found.cosine.mean()), 4),
        "out": out,
    }  # fmt: skip
    place = Path(out)
    work = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        about = {"command": "cluster", "clusters": len(sizes), "kind": kind, "seed": seed}
        if balance is not None:
            kept = found.numbers[balanced(found.of, found.cosine, balance, pick)]
            how = {**about, "balance": balance, "pick": pick}
            facts |= {"kept": len(kept), "read_by": selection.write(work / "kept.parquet", source, kept, how, shards)}
        _write(work, found, {**about, **facts})
        work.rename(place)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return facts


def _sorted(source: Vectors, kind: str, count: int | None, seed: int) -> _Sorted:
    there = np.concatenate([start + np.flatnonzero(rows.any(1)) for start, rows in source.blocks(kind)])
    if not len(there):
        raise UserError(f"{source.folder}: all rows of {kind} embeddings are empty")
    count = count or max(1, min(MOST, round(len(there) ** 0.5)))
    if count > len(there):
        raise UserError(f"--clusters: at most {len(there)}, as many as there are rows, got {count}")
    rows = near.Some(near.Of(source, kind), there)
    centres = spherical(rows, count, ROUNDS, seed)
    with Progress("cluster", len(rows)) as bar:
        cosine, found = nearest_centres(rows, range(len(rows)), centres, 1, bar.update)
    sizes = np.bincount(found[:, 0], minlength=len(centres))
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    new = np.empty(len(centres), np.int64)
    new[order] = np.arange(len(order))
    return _Sorted(source, there, new[found[:, 0]], cosine[:, 0], centres.cpu().numpy()[order])


def balanced(of: np.ndarray, cosine: np.ndarray, most: int, pick: Pick) -> np.ndarray:
    """The places, ascending, of up to `most` rows of each cluster, by the cluster and the cosine of each row [n]."""
    order, sizes, rank = _ranked(of, cosine)
    size = sizes[of[order]]
    if pick == "nearest":
        return np.sort(order[rank < most])
    # rank r of n is taken where r * most / n passes a whole number: most of them, evenly
    return np.sort(order[(size <= most) | ((rank + 1) * most // size > rank * most // size)])


def _ranked(of: np.ndarray, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows by cluster and then nearest first, sizes [C], each one's rank in its cluster, in that order)."""
    order, sizes = np.lexsort((-cosine, of)), np.bincount(of)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return order, sizes, np.arange(len(of)) - starts[of[order]]


def _write(work: Path, found: _Sorted, facts: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = selection.keys_of(found.source)
    own = [keys[number] for number in found.numbers.tolist()]
    columns = {"number": found.numbers, "key": own, "cluster": found.of, "cosine": found.cosine}
    pq.write_table(pa.table(columns), work / "clusters.parquet")
    np.save(work / "centres.npy", found.centres)
    order, sizes, rank = _ranked(found.of, found.cosine)
    nearest = np.split(found.numbers[order[rank < PICTURES]], np.cumsum(np.minimum(sizes, PICTURES))[:-1])
    told = [
        {"cluster": i, "rows": int(sizes[i]), "captions": captions, "numbers": rows.tolist(),
         "keys": [keys[row] for row in rows]}
        for i, (rows, captions) in enumerate(zip(nearest, _captions(found), strict=True))
    ]  # fmt: skip
    text = json.dumps({**facts, "each": told}, indent=1, ensure_ascii=False)
    (work / "clusters.json").write_text(text, encoding="utf-8")
    (work / "clusters.html").write_text(cluster_page.page(found.source, facts, told), encoding="utf-8")


def _captions(found: _Sorted) -> list[list[str]]:
    """Captions of each cluster that are nearest to its centre; those of the nearest rows where texts have no rows."""
    score, captions = found.cosine.copy(), found.source.column("caption")
    if "text" in found.source.kinds:
        for start in range(0, len(score), BLOCK):
            rows = found.source.take("text", found.numbers[start : start + BLOCK])
            score[start : start + BLOCK] = np.einsum("nd,nd->n", rows, found.centres[found.of[start : start + BLOCK]])
    score[[not captions[number] for number in found.numbers.tolist()]] = -2
    order, sizes, rank = _ranked(found.of, score)
    several = 10 * CAPTIONS  # among which there are some that differ
    some = np.split(found.numbers[order[rank < several]], np.cumsum(np.minimum(sizes, several))[:-1])
    return [list(dict.fromkeys(captions[row] for row in rows if captions[row]))[:CAPTIONS] for rows in some]
