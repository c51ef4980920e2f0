"""`--montage out.png`: what was found, as one picture to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipkit import images
from clipkit.errors import ClipkitError, reason_of
from clipkit.page import INK, Sheet, Wrap
from clipkit.search.hits import Hit

MOST = 600
"""Hits that are drawn: a picture of 29,000 pixels' height; matplotlib ends at 65,536."""
ACROSS = 6
SIDE, GAP, MARGIN, HEAD = 1.9, 0.2, 0.35, 0.85  # inches
LINES, LINE = 3, 0.15  # of a caption, and the height of one in inches
PIXELS = 256
SOFT, BAD = "#656d76", "#b35900"


def draw(hits: Sequence[Hit], title: str, path: Path) -> dict[int, str]:
    """Write the hits' pictures with rank, score and caption, under a title, as a PNG in one piece; matplotlib is
    needed. Gives {number of the row: why its picture could not be shown}."""
    across = max(1, min(ACROSS, len(hits)))
    wide = max(2 * MARGIN + across * (SIDE + GAP) - GAP, 6.0)
    tall = SIDE + 0.3 + LINES * LINE + GAP
    sheet = Sheet(wide, HEAD + tall * max(1, -(-len(hits) // across)))
    for i, line in enumerate(Wrap(12, bold=True)(title, (wide - 2 * MARGIN) * 72, 2)):
        sheet.text(MARGIN, 0.25 + 0.22 * i, line, 12, weight="bold")
    if not hits:
        sheet.text(MARGIN, HEAD, "Nothing was found.", 10, color=SOFT)
    wrap, bad = Wrap(8), dict[int, str]()
    for i, hit in enumerate(hits):
        x, y = MARGIN + i % across * (SIDE + GAP), HEAD + i // across * tall
        if reason := _picture(sheet, x, y, hit):
            bad[hit.id] = reason
            for line, text in enumerate(wrap(reason, SIDE * 72, 4)):
                sheet.text(x, y + 0.1 + line * LINE, text, 8, color=BAD)
        sheet.text(x, y + SIDE + 0.08, f"{i + 1}   {hit.score:.3f}", 8, color=SOFT)
        for line, text in enumerate(wrap(hit.caption or hit.key, SIDE * 72, LINES)):
            sheet.text(x, y + SIDE + 0.24 + line * LINE, text, 8, color=INK)
    sheet.save(path)
    return bad


def _picture(sheet: Sheet, x: float, y: float, hit: Hit) -> str | None:
    """Draw a picture; gives why it could not be."""
    try:
        pixels = np.asarray(images.thumbnail(hit.image(), PIXELS))
    except ClipkitError as error:
        return str(error)
    except (ValueError, OSError) as error:
        return reason_of(error)
    axis = sheet.axes(x, y, SIDE, SIDE)
    axis.imshow(pixels)
    axis.set_axis_off()
    return None
