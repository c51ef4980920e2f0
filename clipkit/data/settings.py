"""The settings of the training data."""

from dataclasses import field
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag

from clipkit.config import settings
from clipkit.data.augment import Settings as Augment
from clipkit.data.stages import Stage

Share = Annotated[float, Field(ge=0, le=1)]


def _is_place(value: Any) -> Any:
    """Refused here, because a union would tell every branch's complaint."""
    shares = list(value.values()) if isinstance(value, dict) else []
    if isinstance(value, str) or (shares and all(type(share) in (int, float) and share >= 0 for share in shares)):
        return value
    raise ValueError(f"txt, json:KEY or a mapping of these to their probabilities is needed, got {value!r}")


Place = Annotated[str | dict[str, float], BeforeValidator(_is_place)]
ONLY = "train"
"""What the one source of a run is called that names its shards alone."""


@settings
class Source:
    shards: str
    """Shards: a folder, a glob, a brace pattern such as data/{00000..00012}.tar, or addresses (s3://..., https://...)."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Its share of the samples relative to the other sources'; null, for all of them or none, counts samples."""
    caption: Place | None = None
    """As data.caption, for this source; null takes that."""
    select: str | None = None
    """As data.select, for this source."""


def _kind(value: Any) -> str | None:
    return "(shards)" if isinstance(value, str) else "(sources)" if isinstance(value, dict) and value else None


Train = Annotated[
    Annotated[str, Tag("(shards)")] | Annotated[dict[str, Source], Tag("(sources)")],
    Discriminator(
        _kind,
        custom_error_type="train",
        custom_error_message="shards, or a mapping {NAME: {shards: ...}} is needed",
    ),
]


@settings
class Settings:
    train: Train
    """Shards to train on (a folder, a glob, a brace pattern, addresses), or several sources: {NAME: {shards: ...}}."""
    caption: Place = "txt"
    """Where captions are: txt, json:KEY (of a list of texts one is drawn each time), or several of these with their
    relative probabilities, {txt: 0.3, json:alt: 0.7}."""
    select: str | None = None
    """A selection written by `clipkit data filter` or `dedup`: only its samples are trained on."""
    batch: Annotated[int, Field(gt=0)] = 256
    """Pairs of one step, over all ranks."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Worker processes per rank that read and decode; null chooses by the number of cores."""
    window: Annotated[int, Field(gt=0)] | None = 1 << 18
    """Samples among which order is shuffled, shards are shuffled whole beyond it; null is the whole set, which costs
    no memory and suits local disks."""
    lanes: Annotated[int, Field(gt=0)] = 1
    """Runs of shards that are read side by side, each with its own window. A multiple of the number of nodes lets each
    node fetch its share of remote shards alone; more lanes mix more shards into a batch."""
    crop: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.9, 1.0)
    """Least and greatest share of the picture's area that a training crop keeps."""
    augment: Augment = field(default_factory=Augment)
    stages: list[Stage] = field(default_factory=list)
    """Cheaper stages that the run begins with, such as [{until: 0.9, image_size: 112, context: 16}]; what comes after
    the last is as the model says."""
    max_bad: Share = 0.01
    """Share of unreadable samples among the last 10,000 of a process (at least 10) at which the run stops."""
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    """Most gigabytes of remote shards to keep on this machine; null is 64. Two windows of each lane that
    it reads should fit."""

    @property
    def sources(self) -> dict[str, Source]:
        """The sources by name."""
        return {ONLY: Source(shards=self.train)} if isinstance(self.train, str) else self.train
