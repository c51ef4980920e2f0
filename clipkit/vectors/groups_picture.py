"""A picture of groups of near-duplicates, each a row with the one that is kept first."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clipkit import images
from clipkit.errors import ClipkitError, StorageError
from clipkit.page import write_png

SHOWN = 8  # groups
BESIDE = 6  # pictures of a group
SIDE = 192
KEPT, REMOVED = "#1a7f37", "#b35900"


def draw(
    groups: list[list[int]], title: str, key: Callable[[int], str], image: Callable[[int], bytes], out: str
) -> None:
    """Write groups of numbers (the kept one first) as a PNG, each picture with its key.

    Raises: StorageError when it cannot be written.
    """
    from matplotlib.figure import Figure

    rows, columns = max(len(groups), 1), max([2, *(min(len(group), BESIDE) for group in groups)])
    figure = Figure(figsize=(2.2 * columns, 2.5 * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, group in zip(axes, groups, strict=False):
        for place, (axis, number) in enumerate(zip(line, group, strict=False)):
            more = len(group) - columns if place == columns - 1 else 0
            said = f"{'kept' if place == 0 else 'removed'} {key(number)}" + (f", {more} more" if more > 0 else "")
            axis.set_title(textwrap.fill(said, 28), fontsize=9, color=REMOVED if place else KEPT, parse_math=False)
            _show(axis, image, number)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_png(figure, Path(out), 90)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from error


def title(count: int, removed: int) -> str:
    """What stands above the picture of some of `count` groups."""
    return f"{count} groups, {removed} pictures removed" + (": the largest" if count > SHOWN else "")


def _show(axis: Any, image: Callable[[int], bytes], number: int) -> None:
    try:
        axis.imshow(np.asarray(images.thumbnail(image(number), SIDE)))
    except (ValueError, OSError, ClipkitError) as error:  # two pictures of the same broken bytes make a group too
        axis.text(0.5, 0.5, str(error), ha="center", va="center", fontsize=9, color=REMOVED, wrap=True)
