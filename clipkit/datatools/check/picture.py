"""A check as one picture to look at: the numbers that matter, two histograms, and samples as the model sees them."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.datatools.check.facts import Bars
from clipkit.datatools.check.sample import Look
from clipkit.datatools.check.sources import share
from clipkit.page import Sheet, Wrap, plain

if TYPE_CHECKING:
    from clipkit.datatools.check import Report

COLUMNS = 8
WIDE, SIDE, GAP, MARGIN = 14.0, 1.52, 0.18, 0.35  # inches
LINES, LINE = 4, 0.135  # of a caption, and the height of one in inches
TEXT = 7.5  # points
SOFT, BLUE, ORANGE, RULE = "#656d76", "#0969da", "#b35900", "#d0d7de"


def headline(report: "Report") -> list[tuple[str, str]]:
    """(number, what) of the few that matter most; of several sources the worst is told."""
    captions = [one.captions for one in report.sources if one.captions]
    pictures = [one.pictures for one in report.sources if one.pictures]
    shards = sum(one.shard_count for one in report.sources)
    worst = " at worst" if len(report.sources) > 1 else ""
    found = [
        (_short(report.samples), f"samples in {shards:,} shard{'s' * (shards != 1)}"),
        (share(report.unreadable), "unreadable"),
    ]
    if captions:
        found.append((share(max(one.cut for one in captions)), f"captions cut{worst}"))
        found.append((share(max(one.repeated for one in captions)), f"captions repeated{worst}"))
    if pictures:
        found.append((share(max(one.small for one in pictures)), f"pictures < {report.size} px{worst}"))
        found.append((f"{report.pictures_per_s:,.0f}", "pictures/s/core"))
    found.append((_short(report.steps_per_epoch), f"steps of {report.batch:,} an epoch"))
    return found


def _short(number: float) -> str:
    """A number that fits its place: `1.5`, `5,544`, `413 M`."""
    if number >= 1e7:
        return f"{number / 1e6:,.0f} M"
    return f"{number:,}" if isinstance(number, int) else f"{number:,.{0 if number >= 100 else 1}f}"


def draw(report: "Report", path: Path) -> None:
    """Draw the report into a PNG."""
    small, words = Wrap(TEXT), Wrap(9)
    named = len(report.sources) > 1
    told = [line for one in report.warnings for line in _warned(words, one.source if named else "", one.text)]
    captions = [small(_label(source, one, named), SIDE * 72, LINES) for source, one in report.shown]
    rows = [captions[i : i + COLUMNS] for i in range(0, len(captions), COLUMNS)]
    tall = [SIDE + 0.1 + LINE * max(map(len, row), default=0) + GAP for row in rows]
    top = 1.75 + 0.17 * len(told) + (0.2 if told else 0)
    bars = 2.6
    sheet = Sheet(WIDE, top + bars + 0.35 + sum(tall) + 0.25)
    _head(sheet, report)
    for i, (first, line) in enumerate(told):
        y = 1.65 + 0.17 * i
        if first:
            sheet.text(MARGIN, y, "!", 9, color=ORANGE, weight="bold")
        sheet.text(MARGIN + 0.18, y, line, 9, color=ORANGE)
    half = (WIDE - 2 * MARGIN) / 2
    for i, one in enumerate(("captions", "pictures")):
        found = [(facts.name, getattr(facts, one)) for facts in report.sources]
        _histogram(sheet, MARGIN + i * half, top, half, one, [(n, f.histogram) for n, f in found if f], report)
    y = top + bars
    if rows:
        sheet.text(MARGIN, y, f"Samples as the model sees them: a training crop at {report.size} pixels", 10.5)
        y += 0.35
    for i, row in enumerate(rows):
        for j, lines in enumerate(row):
            _sample(sheet, MARGIN + j * (SIDE + GAP), y, report.shown[i * COLUMNS + j][1], lines)
        y += tall[i]
    sheet.save(path)


def _warned(wrap: Wrap, source: str, text: str) -> list[tuple[bool, str]]:
    lines = wrap(f"{source}: {text}" if source else text, (WIDE - 2 * MARGIN - 0.2) * 72, 6)
    return [(i == 0, line) for i, line in enumerate(lines)]


def _label(source: str, one: Look, named: bool) -> str:
    text = one.drawn or (one.texts[0] if one.texts else "")
    return f"[{source}] {text}" if named else text


def _head(sheet: Sheet, report: "Report") -> None:
    title = Wrap(15, bold=True)(f"clipkit data check {report.source}", (WIDE - 2 * MARGIN) * 72, 1)
    sheet.text(MARGIN, 0.25, title[0], 15, weight="bold")
    tiles = headline(report)
    wide = (WIDE - 2 * MARGIN) / len(tiles)
    for i, (number, what) in enumerate(tiles):
        sheet.text(MARGIN + i * wide, 0.97, number, 19, color=BLUE, weight="bold", va="baseline")
        sheet.text(MARGIN + i * wide, 1.22, what, 9, color=SOFT, va="baseline")


def _histogram(
    sheet: Sheet, x: float, y: float, wide: float, what: str, found: list[tuple[str, Bars]], report: "Report"
) -> None:
    """Caption lengths or picture sides; of several sources each as a line of its own."""
    if not found:
        return
    axis = sheet.axes(x + 0.5, y + 0.35, wide - 0.85, 1.65)
    titles = {"captions": "Captions: tokens before they are cut", "pictures": "Pictures: shorter side in pixels"}
    marks = {"captions": f"context {report.context}", "pictures": f"input {report.size}"}
    sheet.text(x, y, titles[what], 10.5)
    for i, (name, bars) in enumerate(found):
        parts = [count / max(sum(bars.counts), 1) for count in bars.counts]
        if len(found) == 1:
            axis.stairs(parts, bars.edges, fill=True, color=BLUE)
        else:
            axis.stairs(parts, bars.edges, color=f"C{i % 10}", linewidth=1.6, label=plain(name)[:30])
    first = found[0][1]
    low, high = min(bars.edges[0] for _, bars in found), max(bars.edges[-1] for _, bars in found)
    if first.is_log:
        axis.set_xscale("log")
        axis.set_xticks(ticks(low, high, True), minor=False)
        axis.set_xticks([], minor=True)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axis.set_xlim(low, high)
    axis.axvline(first.mark, color=ORANGE, linestyle="--", linewidth=1.4)
    right = axis.transLimits.transform(axis.transScale.transform((first.mark, 0)))[0] > 0.7
    axis.annotate(
        marks[what], (first.mark, 1), (-4 if right else 4, 2), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right" if right else "left", va="top", color=ORANGE, fontsize=8,
    )  # fmt: skip
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=SOFT)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.12)
    if len(found) > 1:
        legend = axis.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1.02), ncols=5)
        for text in legend.get_texts():
            text.set_parse_math(False)


def ticks(low: float, high: float, is_log: bool) -> list[int]:
    """Some whole numbers between the ends of an axis."""
    if not is_log:
        return sorted({round(high * i / 6) for i in range(6)})
    doubling = [1 << i for i in range(1, 17) if low <= 1 << i <= high]
    if len(doubling) >= 3:
        return doubling
    return sorted({round(low * (high / low) ** ((i + 0.5) / 5)) for i in range(5)})


def _sample(sheet: Sheet, x: float, y: float, one: Look, lines: list[str]) -> None:
    axis = sheet.axes(x, y, SIDE, SIDE)
    if one.view is not None:
        axis.imshow(one.view.transpose(1, 2, 0))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color(RULE)
    for i, line in enumerate(lines):
        sheet.text(x, y + SIDE + 0.07 + LINE * i, line, TEXT)
