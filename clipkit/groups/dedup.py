"""`clipkit dedup VECTORS --out KEPT`: one of each group of rows that are nearly the same, as a selection."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipkit.errors import UserError
from clipkit.groups.rows import picture_of, rows_of_kind
from clipkit.log import Progress
from clipkit.page import need_matplotlib
from clipkit.vectors import Vectors, groups_picture, near, selection
from clipkit.vectors.lists import SLACK, TILE, unit

Rule = Literal["first", "largest", "best"]


def dedup(
    folder: str,
    out: str,
    *,
    threshold: float = 0.95,
    keep: Rule = "first",
    kind: str | None = None,
    picture: str | None = None,
    shards: str | None = None,
) -> dict[str, Any]:
    """Write the selection `out` of the rows of a vectors folder without near-duplicates: of each group of rows that
    pairs of a cosine of `threshold` at least connect, the `first` is kept, the `largest` picture, or the `best` by
    cosine with its caption; of equals the first.

    Rows are of pictures, or of `kind` "text" of captions. `picture` is a PNG that shows the largest groups. `shards`
    are those of the pictures, where they lie elsewhere now.
    Gives `of`, `kept`, `duplicates`, of these `by_chain` (not near to the one that is kept itself), `groups`,
    `largest_group`, `search` (how pairs were found), `out`, `read_by` and `picture`.
    Raises: UserError when an argument is wrong or something to write exists.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold: a cosine above 0 and up to 1 is needed, got {threshold}")
    selection.refuse_existing(out, picture)
    if picture:
        need_matplotlib("--picture")
    source, kind = rows_of_kind(folder, kind)
    worth = _worth(source, keep)
    with Progress("compare", len(source)) as bar:
        first, how = near.groups(near.Of(source, kind), threshold, bar.update)
    kept = near.one_of_each(first, worth)
    chained = _chained(near.Of(source, kind), first, kept, threshold)
    about = {"command": "dedup", "threshold": threshold, "keep": keep, "kind": kind, "search": how}
    read_by = selection.write(Path(out), source, kept, about, shards)
    sizes = np.bincount(first)
    count, most = int((sizes > 1).sum()), int(sizes.max())
    if picture:
        keys = selection.keys_of(source)
        title = groups_picture.title(count, len(source) - len(kept))
        shown = near.largest(first, kept, groups_picture.SHOWN)
        groups_picture.draw(shown, title, keys.__getitem__, picture_of(source), picture)
    return {
        "of": len(source), "kept": len(kept), "duplicates": len(source) - len(kept), "by_chain": chained,
        "groups": count, "largest_group": most if count else 0, "search": how, "out": out, "read_by": read_by,
        "picture": picture,
    }  # fmt: skip


def _chained(rows: near.Of, first: np.ndarray, kept: np.ndarray, threshold: float) -> int:
    """How many rows are gone whose cosine with the one of their group that stays is below the threshold."""
    stays = np.zeros(len(first), np.int64)
    stays[first[kept]] = kept
    gone, count = np.flatnonzero(near.grouped(first) & (stays[first] != np.arange(len(first)))), 0
    for start in range(0, len(gone), TILE):
        some = gone[start : start + TILE]
        cosine = (unit(rows[some]) * unit(rows[stays[first[some]]])).sum(1)
        count += int((cosine < threshold - SLACK).sum())
    return count


def _worth(source: Vectors, keep: str) -> np.ndarray:
    """What decides which row of a group is kept, float64 [n].

    Raises: UserError when the folder does not know it.
    """
    if keep == "first":
        return np.zeros(len(source))
    if keep == "largest":
        sides = [np.array(source.column(name), np.float64) for name in ("width", "height")]  # None becomes NaN
        if np.isnan(sides[0]).all():
            raise UserError(
                f"{source.folder}: does not say how large its pictures are; embed again, or type --keep first"
            )
        return np.nan_to_num(sides[0] * sides[1])
    if keep != "best":
        raise UserError(f"--keep: one of first, largest, best is needed, got '{keep}'")
    if set(source.kinds) != {"image", "text"}:
        raise UserError(
            f"{source.folder}: --keep best compares pictures with their captions, and only {source.kinds[0]} "
            "embeddings are there; embed again with captions, or type --keep first"
        )
    worth, captions = np.empty(len(source)), source.column("caption")
    for (start, rows), (_, texts) in zip(source.blocks("image"), source.blocks("text"), strict=True):
        worth[start : start + len(rows)] = np.einsum("nd,nd->n", rows, texts)
    worth[[not caption for caption in captions]] = -2.0  # below all that have one
    return worth
