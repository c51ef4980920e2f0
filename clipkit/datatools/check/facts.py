"""What the samples of a source have in common, in numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from clipkit.captions import Tokenizer
from clipkit.datatools.check.sample import Look, tokens_of
from clipkit.datatools.check.sources import Opened

BARS = 40
FIRST = 20  # unreadable samples that are named
KEYS = 50  # keys of the .json that are told
FREQUENT = 5
LINE = 200  # characters of a caption that are told


@dataclass(frozen=True)
class Range:
    """Least, median, 95th of a hundred, and most of some numbers; each of them is one of the numbers."""

    least: int
    median: int
    p95: int
    most: int


@dataclass(frozen=True)
class Bars:
    """A histogram: `counts` [n] between `edges` [n + 1]; what lies beyond the last edge is in the last bar."""

    edges: list[float]
    counts: list[int]
    mark: float
    is_log: bool = False


@dataclass(frozen=True)
class Key:
    """A key of the .json files: the share of the samples that have it, and a value."""

    name: str
    share: float
    example: str


@dataclass(frozen=True)
class Often:
    """A caption of several samples, and their share."""

    caption: str
    share: float


@dataclass(frozen=True)
class Captions:
    """The captions of the samples looked at. `found` is the share of samples with a caption, by place.

    The rest is of captions as they are drawn: `cut` the share of those longer than the context, `repeated` of those
    that another sample has too (but for case), `same` the chance that two samples are drawn with the same one.
    """

    captions: int
    found: dict[str, float]
    empty: float
    per_sample: Range
    words: Range
    characters: Range
    tokens: Range
    cut: float
    repeated: float
    same: float
    frequent: list[Often]
    not_ascii: float
    histogram: Bars


@dataclass(frozen=True)
class Pictures:
    """The pictures that could be read: `small` is the share whose shorter side is below the model's, `long` of those
    more than twice as long as wide or high, `largest` the one of most bytes."""

    pictures: int
    width: Range
    height: Range
    bytes: Range
    small: float
    long: float
    grey: float
    blank: float
    formats: dict[str, float]
    largest: str
    per_s: float
    histogram: Bars


@dataclass(frozen=True)
class Unreadable:
    """Samples that training would have to replace: their share, how many by reason, and the first of them."""

    share: float
    reasons: dict[str, int] = field(default_factory=dict)
    first: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """What is known of a source; without captions or pictures where not one could be read. `members` are counted in
    the shards looked at, `left_out` in all that have an index."""

    name: str
    shards: str
    shard_count: int
    samples: int
    estimated: bool
    left_out: dict[str, int]
    members: dict[str, int]
    looked_at: int
    shards_looked_at: int
    keys: list[Key]
    captions: Captions | None
    pictures: Pictures | None
    unreadable: Unreadable


def facts_of(source: Opened, looks: list[Look], tokenizer: Tokenizer, side: int) -> Facts:
    """The facts of a source, from what was found of some of its samples, for a model of `side` pixels."""
    bad = [one for one in looks if one.reason is not None]
    first = [{"sample": one.sample, "reason": str(one.reason)} for one in bad[:FIRST]]
    reasons = dict(Counter(str(one.reason) for one in bad).most_common())
    return Facts(
        name=source.name,
        shards=source.pattern,
        shard_count=len(source.counts),
        samples=int(source.counts.sum()),
        estimated=source.estimated,
        left_out=dict(sorted(source.shards.lost.items())),
        members=_members(source, {one.shard for one in looks}),
        looked_at=len(looks),
        shards_looked_at=len({one.shard for one in looks}),
        keys=_keys(looks),
        captions=_captions(looks, tokenizer),
        pictures=_pictures([one for one in looks if one.seconds], side),
        unreadable=Unreadable(len(bad) / max(len(looks), 1), reasons, first),
    )


def range_of(values: Sequence[int] | np.ndarray) -> Range:
    """The range of at least one number."""
    found = np.percentile(np.asarray(values), (0, 50, 95, 100), method="inverted_cdf")
    return Range(*(int(value) for value in found))


def _members(source: Opened, shards: set[int]) -> dict[str, int]:
    """Member -> samples with a picture that have it, in these shards."""
    found = Counter[str]()
    for shard in sorted(shards):
        for names, n in source.shards.files.kept(shard).about["has"].items():
            found.update(dict.fromkeys(names.split(), n))
    return dict(found.most_common())


def _keys(looks: list[Look]) -> list[Key]:
    having, examples = Counter[str](), dict[str, str]()
    for one in looks:
        having.update(one.about.keys())
        for key, value in one.about.items():
            examples.setdefault(key, value)
    return [Key(name, n / len(looks), examples[name]) for name, n in having.most_common(KEYS)]


def _captions(looks: list[Look], tokenizer: Tokenizer) -> Captions | None:
    texts = [text for one in looks for text in one.texts]
    if not texts:
        return None
    tokens, drawn = tokens_of(tokenizer, texts), np.array([weight for one in looks for weight in one.weights])
    owners, likely, squares = Counter[str](), Counter[str](), 0.0
    for one in looks:  # a sample's own captions may repeat each other, which does no harm: it is one row of a batch
        mine = Counter[str]()
        for text, weight in zip(one.texts, one.weights, strict=True):
            mine[_plain(text)] += weight  # type: ignore[assignment]
        owners.update(mine.keys())
        likely.update(mine)
        squares += sum(weight**2 for weight in mine.values())
    with_text = [one for one in looks if one.texts]
    many = len(with_text)
    places = Counter(place for one in looks for place in one.places)
    spelled = {_plain(text): text for text in reversed(texts)}
    often = [Often(spelled[plain][:LINE], n / many) for plain, n in likely.most_common(FREQUENT) if owners[plain] > 1]
    return Captions(
        captions=len(texts),
        found={place: n / len(looks) for place, n in sorted(places.items())},
        empty=sum(one.reason == "empty caption" for one in looks) / len(looks),
        per_sample=range_of([len(one.texts) for one in with_text]),
        words=range_of([len(text.split()) for text in texts]),
        characters=range_of([len(text) for text in texts]),
        tokens=range_of(tokens),
        cut=float(drawn @ (tokens > tokenizer.context)) / many,
        repeated=float(drawn @ np.array([owners[_plain(text)] > 1 for text in texts])) / many,
        same=max(0.0, sum(n**2 for n in likely.values()) - squares) / max(many * (many - 1), 1),
        frequent=often,
        not_ascii=sum(not text.isascii() for text in texts) / len(texts),
        histogram=_bars(tokens, tokenizer.context, False),
    )


def _plain(text: str) -> str:
    return text.strip().lower()


def _pictures(looks: list[Look], side: int) -> Pictures | None:
    if not looks:
        return None
    sizes = np.array([one.size for one in looks])
    n, short, long = len(looks), sizes.min(1), sizes.max(1)
    forms = Counter(one.form for one in looks)
    return Pictures(
        pictures=n,
        width=range_of(sizes[:, 0]),
        height=range_of(sizes[:, 1]),
        bytes=range_of([one.bytes for one in looks]),
        small=float(np.mean(short < side)),
        long=float(np.mean(long > 2 * short)),
        grey=sum(one.grey for one in looks) / n,
        blank=sum(one.blank for one in looks) / n,
        formats={form: count / n for form, count in forms.most_common()},
        largest=max(looks, key=lambda one: one.bytes).sample,
        per_s=n / max(sum(one.seconds for one in looks), 1e-9),
        histogram=_bars(short, side, True),
    )


def _bars(values: np.ndarray, mark: int, is_log: bool) -> Bars:
    """A histogram that shows the `mark`: of sides in steps of equal ratio, of lengths in whole steps up to where few
    are longer."""
    if is_log:
        low, high = min(int(values.min()), mark), max(int(values.max()), mark)
        edges = np.geomspace(low * 0.9, high * 1.1, BARS + 1)
    else:
        high = max(int(np.percentile(values, 99)), mark) * 1.1
        width = max(1, int(np.ceil(high / BARS)))
        edges = np.arange(0, high + width, width).astype(float)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Bars([round(float(edge), 2) for edge in edges], counts.tolist(), float(mark), is_log)
