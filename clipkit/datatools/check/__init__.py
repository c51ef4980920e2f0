"""`clipkit data check SRC`: what a run would meet, told from some samples before GPU hours are spent on it."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.data.settings import ONLY
from clipkit.datatools.check.facts import Captions, Facts, Pictures, Range, facts_of
from clipkit.datatools.check.order import Mixing, Part, mixing_of, parts_of
from clipkit.datatools.check.sample import Look, Looker, choose, look
from clipkit.datatools.check.sources import BATCH, FAR, Given, feed, open_sources, read_settings, share
from clipkit.datatools.check.warnings import Warned, unreadable_of, warnings_of
from clipkit.errors import BadData, UserError
from clipkit.page import need_matplotlib

SHOWN = 40
"""Samples on the picture and the page."""
PER_S = 1000  # pairs, for which the cores are told


@dataclass(frozen=True)
class Report:
    """What a check has found. `samples` are those of all sources, which is an epoch; `steps` and `epochs` of the whole
    run where the recipe says; `shown` [(source, look)] are the samples to show people."""

    source: str
    recipe: str | None
    model: str
    size: int
    context: int
    batch: int
    batch_chosen: bool
    max_bad: float
    samples: int
    steps_per_epoch: float
    steps: int | None
    epochs: float | None
    pictures_per_s: float
    sources: list[Facts]
    parts: list[Part]
    mixing: Mixing
    warnings: list[Warned]
    shown: list[tuple[str, Look]] = field(repr=False, default_factory=list)

    @property
    def unreadable(self) -> float:
        """The share of unreadable samples among those that the run would read."""
        return unreadable_of(self.sources, self.parts)

    def as_dict(self) -> dict[str, Any]:
        """All of it but the pictures, ready for JSON."""
        more = {"unreadable": self.unreadable, "ok": self.unreadable <= self.max_bad}
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "shown"} | more

    def refuse_bad(self) -> None:
        """Raises: BadData when more samples are unreadable than `data.max_bad` allows."""
        if self.unreadable > self.max_bad:
            bad = next(one for one in self.sources if one.unreadable.first)
            first = bad.unreadable.first[0]
            raise BadData(
                f"{self.source}: {share(self.unreadable)} of what a run would read is unreadable, the first is "
                f"{first['sample']} ({first['reason']}); data.max_bad={self.max_bad:g} allows fewer; mend the shards, "
                "or raise data.max_bad"
            )


@dataclass(frozen=True)
class _Sampling:
    """How many samples of each source are looked at, by which seed and processes, and how many of all are shown."""

    most: int
    seed: int
    workers: int
    shown: int


def check(
    source: str,
    *,
    overrides: Sequence[str] = (),
    caption: str | None = None,
    select: str | None = None,
    batch: int | None = None,
    model: str | None = None,
    context: int | None = None,
    sample: int = 2000,
    seed: int = 0,
    workers: int = 0,
    picture: str | Path | None = None,
    html: str | Path | None = None,
) -> Report:
    """What a run over `source` (shards, or a recipe by path or name) would meet, from `sample` samples of each source.

    `overrides` (`data.window=1000`) are those of a training run. `caption`, `select`, `batch`, `model` (an
    architecture) and `context` stand in for the recipe's; without a model, CLIP's tokenizer and 224 pixels are taken.
    `workers` processes look (0: this one). Of a remote source at most 16 shards are fetched. `picture` (PNG) and
    `html` are files to write. What is unreadable is told; `Report.refuse_bad` makes an error of too much of it.

    Raises: UserError for what the user must mend: the recipe, the shards, a place without captions.
    """
    if sample < 1:
        raise UserError(f"check: --sample must be at least 1, got {sample}")
    if picture:
        need_matplotlib("--picture")
    for path in (picture, html):
        if path and not Path(path).parent.is_dir():
            raise UserError(f"{path}: there is no folder {Path(path).parent} to write it to")
    settings = read_settings(source, overrides, caption, select, batch, model, context)
    report = _check(source, settings, _Sampling(sample, seed, workers, SHOWN if picture or html else 0), context)
    if picture:
        from clipkit.datatools.check.picture import draw

        draw(report, Path(picture))
    if html:
        from clipkit.datatools.check.page import write

        write(report, Path(html))
    return report


def _check(source: str, settings: Given, how: _Sampling, context: int | None) -> Report:
    cfg = settings.cfg.data
    needs, sources = feed(settings.cfg.model, context), open_sources(cfg)
    total = sum(int(one.counts.sum()) for one in sources)
    if not settings.batch_chosen:  # the usual one, or what fits a small set
        cfg = dataclasses.replace(cfg, batch=min(BATCH, 1 << (total.bit_length() - 1)))
    each, looks = math.ceil(how.shown / len(sources)), []
    for one in sources:
        places = choose(one, how.most, how.seed, each)
        looks.append(look(Looker(one, needs.shape, cfg.crop, how.seed), places, how.workers))
    side = needs.shape.size
    facts = [facts_of(one, found, needs.tokenizer, side) for one, found in zip(sources, looks, strict=True)]
    parts, mixing = parts_of(sources, cfg), mixing_of(sources, cfg, settings.cfg.seed)
    to_show = [(one.name, item) for one, found in zip(sources, looks, strict=True) for item in _readable(found)[:each]]
    timed = [one.seconds for found in looks for one in found if one.seconds]
    steps, epochs = settings.cfg.steps, settings.cfg.epochs
    if steps is None and epochs is not None:
        steps = max(1, math.ceil(epochs * total / cfg.batch))
    return Report(
        source=source,
        recipe=settings.recipe,
        model=needs.model,
        size=side,
        context=needs.tokenizer.context,
        batch=cfg.batch,
        batch_chosen=settings.batch_chosen,
        max_bad=cfg.max_bad,
        samples=total,
        steps_per_epoch=total / cfg.batch,
        steps=steps,
        epochs=None if steps is None else steps * cfg.batch / total,
        pictures_per_s=len(timed) / sum(timed) if timed else 0.0,
        sources=facts,
        parts=parts,
        mixing=mixing,
        warnings=warnings_of(cfg, needs, sources, facts, parts, mixing),
        shown=to_show,
    )


def _readable(looks: list[Look]) -> list[Look]:
    return [one for one in looks if one.view is not None and one.reason is None]


def rows(report: Report) -> Iterator[tuple[str, str, str]]:
    """(source, what, value) for people: each source, then the run (with no source), then the warnings."""
    named = len(report.sources) > 1 or report.sources[0].name != ONLY
    for facts, part in zip(report.sources, report.parts, strict=True):
        for what, value in _of_source(facts, part, report):
            yield facts.name if named else "", what, value
    for what, value in of_run(report):
        yield "", what, value
    for one in report.warnings:
        yield one.source if named else "", "warning", one.text


def _of_source(facts: Facts, part: Part, report: Report) -> Iterator[tuple[str, str]]:
    yield "shards", f"{facts.shards} ({facts.shard_count:,})"
    about = " (estimated)" if facts.estimated else ""
    yield "samples", f"{facts.samples:,}{about}"
    yield from ((f"left out: {reason}", f"{n:,}") for reason, n in facts.left_out.items())
    few = f"; at most {FAR} of remote ones are fetched" if part.window_mb is not None else ""
    yield "looked at", f"{facts.looked_at:,} samples in {facts.shards_looked_at:,} shards{few}"
    yield "members", ", ".join(f"{name}: {n:,}" for name, n in facts.members.items())
    if len(report.parts) > 1:
        yield "share of a batch", f"{share(part.share)}, seen {part.epochs:.2f} times an epoch{_over_run(part, report)}"
    yield "unreadable", share(facts.unreadable.share)
    yield from ((f"unreadable: {reason}", f"{n:,}") for reason, n in facts.unreadable.reasons.items())
    yield from (("unreadable sample", f"{one['sample']}: {one['reason']}") for one in facts.unreadable.first[:3])
    yield from ((f"json:{key.name}", f"{share(key.share)}, such as {key.example}") for key in facts.keys)
    if facts.captions:
        yield from of_captions(facts.captions, report.context)
    if facts.pictures:
        yield from of_pictures(facts.pictures, report.size)
    if part.window_mb is not None:
        yield "two windows", f"{part.window_mb:,.0f} MB of the cache's {part.cache_mb:,.0f} MB"


def _over_run(part: Part, report: Report) -> str:
    return f", {part.epochs * report.epochs:.2f} times in the run" if report.epochs else ""


def _range(found: Range) -> str:
    return f"half up to {found.median:,}, 95 % up to {found.p95:,}, the longest {found.most:,}"


def of_captions(found: Captions, context: int) -> Iterator[tuple[str, str]]:
    """(what, value) about captions, for people."""
    places = ", ".join(f"{place} in {share(part)} of the samples" for place, part in found.found.items())
    yield "captions", f"{places}; {found.per_sample.median} a sample, at most {found.per_sample.most}"
    yield "caption words", _range(found.words)
    yield "caption characters", _range(found.characters)
    yield "caption tokens", _range(found.tokens)
    yield f"cut at {context} tokens", share(found.cut)
    yield "empty captions", share(found.empty)
    yield "repeated captions", share(found.repeated)
    yield from (("frequent caption", f"{share(one.share)}: {' '.join(one.caption.split())}") for one in found.frequent)
    yield "captions beyond ASCII", share(found.not_ascii)


def of_pictures(found: Pictures, side: int) -> Iterator[tuple[str, str]]:
    """(what, value) about pictures, for people."""
    wide, high, size = found.width, found.height, found.bytes
    yield "picture width", f"{wide.least:,} to {wide.most:,}, half up to {wide.median:,}"
    yield "picture height", f"{high.least:,} to {high.most:,}, half up to {high.median:,}"
    kilo = [f"{value / 1e3:,.0f} kB" for value in (size.median, size.p95, size.most)]
    yield "picture bytes", f"half up to {kilo[0]}, 95 % up to {kilo[1]}, the largest {kilo[2]}"
    yield "picture formats", ", ".join(f"{name} {share(part)}" for name, part in found.formats.items())
    yield f"smaller than {side} pixels", share(found.small)
    yield "longer than 2 : 1", share(found.long)
    yield "grey, blank", f"{share(found.grey)}, {share(found.blank)}"


def of_run(report: Report) -> Iterator[tuple[str, str]]:
    """(what, value) about the run as a whole, for people."""
    mixing = report.mixing
    yield "model", f"{report.model}, {report.size} pixels, {report.context} tokens"
    yield "batch", f"{report.batch:,}{'' if report.batch_chosen else ' (assumed; --batch)'}"
    yield "steps per epoch", f"{report.steps_per_epoch:,.1f}"
    if report.steps:
        yield "steps", f"{report.steps:,}, {report.epochs:.2f} epochs"
    if report.pictures_per_s:
        cores = math.ceil(PER_S / report.pictures_per_s)
        yield (
            "pictures/s/core",
            f"{report.pictures_per_s:,.0f}; {PER_S:,} pairs/s need {cores} such core{'s' * (cores > 1)}",
        )
    yield "shards per batch", f"{mixing.shards:.0f}; {mixing.shards_ideal:.0f} in a shuffle of the whole set"
    yield (
        "pairs of one shard",
        f"{share(mixing.same_shard)}; {share(mixing.same_shard_ideal)} in a shuffle of the whole set",
    )
