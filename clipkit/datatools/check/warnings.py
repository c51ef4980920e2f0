"""What a run would stumble over, in words, with what to type."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipkit.data import Settings
from clipkit.datatools.check.facts import Facts
from clipkit.datatools.check.order import Mixing, Part
from clipkit.datatools.check.sources import Feed, Opened, share

REPEATED, CUT, SMALL, LONG, BLANK, SAME_SHARD, OFTEN = 0.2, 0.1, 0.2, 0.2, 0.05, 0.05, 10.0
TWINS = 0.5
"""Pairs of a batch with the caption of another, per pair, from which on contrast suffers."""
HEAVY = 20_000_000
"""Bytes of one picture above which a worker's memory and time are at risk."""


@dataclass(frozen=True)
class Warned:
    """A warning about a source, or about the whole run where that is empty; `what` is a word for programs."""

    source: str
    what: str
    text: str


def warnings_of(
    cfg: Settings, feed: Feed, sources: Sequence[Opened], facts: Sequence[Facts], parts: Sequence[Part], mixing: Mixing
) -> list[Warned]:
    """All warnings; the one that a run would stop comes first."""
    found = [Warned("", what, text) for what, text in _of_stopping(cfg, facts, parts)]
    for source, fact, part in zip(sources, facts, parts, strict=True):
        about = [*_of_reading(cfg, fact), *_of_captions(cfg, feed, fact), *_of_pictures(feed, fact)]
        about += [*_of_remote(source, fact, part), *_of_part(part, len(parts))]
        found += [Warned(fact.name, what, text) for what, text in about]
    return found + [Warned("", what, text) for what, text in _of_order(cfg, facts, mixing)]


def unreadable_of(facts: Sequence[Facts], parts: Sequence[Part]) -> float:
    """The share of unreadable samples among those that a run would read, of all sources in their shares."""
    return sum(part.share * fact.unreadable.share for fact, part in zip(facts, parts, strict=True))


def _of_stopping(cfg: Settings, facts: Sequence[Facts], parts: Sequence[Part]) -> Iterator[tuple[str, str]]:
    if (bad := unreadable_of(facts, parts)) > cfg.max_bad:
        text = (
            f"a run would stop: {share(bad)} of what it reads is unreadable, data.max_bad={cfg.max_bad:g} allows fewer"
        )
        yield "stop", f"{text}; mend the shards, or raise data.max_bad"


def _of_reading(cfg: Settings, fact: Facts) -> Iterator[tuple[str, str]]:
    bad = fact.unreadable
    if bad.share:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in bad.reasons.items())
        text = f"{share(bad.share)} of the samples are unreadable ({reasons}), others of their shard would stand in;"
        yield "unreadable", f"{text} `clipkit data index {fact.shards} --verify decode` leaves out broken pictures"
    lost = {reason: n for reason, n in fact.left_out.items() if reason != "not selected"}
    if sum(lost.values()) > cfg.max_bad * (sum(lost.values()) + fact.samples):
        told = ", ".join(f"{reason}: {n}" for reason, n in lost.items())
        yield "left out", f"more than {share(cfg.max_bad)} cannot be used ({told}); is data.caption right?"


def _of_captions(cfg: Settings, feed: Feed, fact: Facts) -> Iterator[tuple[str, str]]:
    found, context = fact.captions, feed.tokenizer.context
    if found is None:
        return
    if found.cut > CUT:
        text = (
            f"{share(found.cut)} of the captions are longer than {context} tokens and lose their end; "
            f"model.context={-(-found.tokens.p95 // 8) * 8} holds 95 % of them whole"
        )
        yield "cut", text
    twins = found.same * (cfg.batch - 1)
    if found.repeated > REPEATED or twins > TWINS:
        most = found.frequent[0] if found.frequent else None
        often = f", the most frequent one with {share(most.share)}: {_quoted(most.caption)}" if most else ""
        text = (
            f"{share(found.repeated)} of the captions stand with other samples too{often}; in a batch of {cfg.batch:,} "
            f"a pair meets {twins:.2g} others with its caption, which are taught as wrong; leave some out with "
            "data.select=FILE (`clipkit data dedup` and `clipkit data filter` write one)"
        )
        yield "repeated", text


def _quoted(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= most else line[: most - 3] + "...")


def _of_pictures(feed: Feed, fact: Facts) -> Iterator[tuple[str, str]]:
    found, side = fact.pictures, feed.shape.size
    if found is None:
        return
    if found.small > SMALL:
        text = (
            f"{share(found.small)} of the pictures are smaller than the model's {side} pixels and are enlarged, which "
            "adds time and no detail; a smaller model.image_size fits them where the architecture allows it"
        )
        yield "small", text
    if found.long > LONG:
        yield (
            "long",
            f"{share(found.long)} of the pictures are over twice as long as wide or high: crops lose much of them",
        )
    if found.blank > BLANK:
        text = (
            f"{share(found.blank)} of the pictures are of one colour, such as sites give for lost ones; leave them out"
        )
        yield "blank", f"{text} with data.select=FILE (`clipkit data filter` writes one)"
    if found.bytes.most > HEAVY:
        size = found.bytes.most / 1e6
        yield (
            "heavy",
            f"{found.largest} has {size:.0f} MB, which a worker holds whole; `clipkit data pack --size` shrinks",
        )


def _of_remote(source: Opened, fact: Facts, part: Part) -> Iterator[tuple[str, str]]:
    if source.estimated:
        text = (
            f"nobody says how many samples the {fact.shard_count:,} remote shards hold, here that is estimated; a run "
            f"would fetch all of them before its first step; `clipkit data index '{fact.shards}' --out FOLDER` does so "
            "once, and FOLDER then stands for them"
        )
        yield "no index", text
    if part.window_mb and part.cache_mb and part.window_mb > part.cache_mb:
        text = (
            f"two windows are {part.window_mb:,.0f} MB and the cache holds {part.cache_mb:,.0f} MB, so that shards are "
            f"fetched again and again; data.cache_gb={-(-part.window_mb // 1000):.0f}, or a smaller data.window"
        )
        yield "cache", text


def _of_part(part: Part, sources: int) -> Iterator[tuple[str, str]]:
    if sources > 1 and part.epochs > OFTEN:
        text = f"seen {part.epochs:.0f} times in an epoch of the run; a smaller"
        yield "weight", f"{text} data.train.{part.name}.weight repeats it less"


def _of_order(cfg: Settings, facts: Sequence[Facts], mixing: Mixing) -> Iterator[tuple[str, str]]:
    samples, shards = sum(fact.samples for fact in facts), sum(fact.shard_count for fact in facts)
    if cfg.batch > samples:
        text = f"a batch of {cfg.batch:,} pairs holds samples more than once, for there are {samples:,}"
        yield "batch", f"{text}; data.batch={1 << (samples.bit_length() - 1)}"
    elif mixing.same_shard > SAME_SHARD and mixing.same_shard > 2 * mixing.same_shard_ideal:
        text = (
            f"{share(mixing.same_shard)} of the pairs in a batch are of one shard, a shuffle of the whole set has "
            f"{share(mixing.same_shard_ideal)}: a batch is from {mixing.shards:.0f} of {shards:,} shards; "
            "data.window=null is that shuffle (for local disks), a larger data.window or more data.lanes help anywhere"
        )
        yield "mixing", text
    least = min(fact.shard_count for fact in facts)
    if cfg.lanes > max(least, 1):
        yield "lanes", f"{cfg.lanes} lanes share {least} shards, so that several read each of them; data.lanes={least}"
