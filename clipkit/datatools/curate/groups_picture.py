"""A picture of groups of near-duplicates, each a row with the one that is kept first."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from clipkit import images
from clipkit.datatools.curate.kept import placed
from clipkit.errors import UserError
from clipkit.shards import Shards

SHOWN = 8  # groups
BESIDE = 6  # pictures of a group
SIDE = 192
KEPT, REMOVED = "#1a7f37", "#b35900"


def need_matplotlib() -> None:
    """Raises: UserError when the package that draws is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--picture is drawn by matplotlib; type: pip install 'clipkit[demo]'") from None


def draw(source: Shards, groups: list[list[int]], out: str) -> None:
    """Write the largest `groups` (flat numbers, the kept one first) as a PNG, those as large in their own order.

    Raises: StorageError when it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    shown = sorted(groups, key=len, reverse=True)[:SHOWN]
    rows, columns = max(len(shown), 1), max([2, *(min(len(group), BESIDE) for group in shown)])
    figure = Figure(figsize=(2.2 * columns, 2.5 * rows + 0.6), layout="constrained")
    removed = sum(map(len, groups)) - len(groups)
    figure.suptitle(
        f"{len(groups)} groups, {removed} pictures removed" + (": the largest" if len(groups) > rows else "")
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, group in zip(axes, shown, strict=False):
        for place, (axis, number) in enumerate(zip(line, group, strict=False)):
            more = len(group) - columns if place == columns - 1 else 0
            _show(axis, source, number, place == 0, more)
    with placed(Path(out)) as path:
        figure.savefig(path, dpi=90, format="png")


def _show(axis: Any, source: Shards, number: int, kept: bool, more: int) -> None:
    title = f"{'kept' if kept else 'removed'} {source.key(*source.place(number))}" + (
        f", {more} more" if more > 0 else ""
    )
    axis.set_title(textwrap.fill(title, 28), fontsize=9, color=KEPT if kept else REMOVED)
    try:
        axis.imshow(np.asarray(images.thumbnail(source.image(number), SIDE)))
    except (ValueError, OSError) as error:  # two pictures of the same broken bytes make a group too
        axis.text(0.5, 0.5, str(error), ha="center", va="center", fontsize=9, color=REMOVED)
