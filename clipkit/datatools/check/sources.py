"""What a check looks at: shards, or the `data:` of a recipe, opened as a run would open them."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from clipkit import config, data, models
from clipkit.captions import Tokenizer, clip_encode
from clipkit.errors import UserError
from clipkit.shards import Choice, Shards, Wanted, caption_of, json_object, members_for
from clipkit.shards.files import Files
from clipkit.types import Preprocess

FAR = 16
"""The most remote shards of a source that a check fetches."""
TRIED = 100  # samples in which a caption is looked for before it is said that there is none
BATCH = 4096
SIZE, CONTEXT = 224, 77  # of most CLIP models
LOOKED_AT = ("data", "model", "seed", "steps", "epochs")


@config.settings
class Looked:
    """The settings of a recipe that a check looks at."""

    data: data.Settings
    model: models.Settings | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    steps: Annotated[int, Field(gt=0)] | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True)
class Given:
    """The settings to look at, the recipe's path (None for shards), and whether anybody chose the batch."""

    cfg: Looked
    recipe: str | None
    batch_chosen: bool


@dataclass(frozen=True)
class Feed:
    """What a model asks of its data: its name, tokenizer, and the size of its pictures."""

    model: str
    tokenizer: Tokenizer
    shape: Preprocess


@dataclass(frozen=True)
class Opened:
    """A source of which `near` are the shards that may be read, by their numbers in `shards`.

    `counts` [S] are the samples of all shards; where `estimated`, that of each is the mean of those opened.
    """

    name: str
    pattern: str
    caption: Choice
    weight: float | None
    shards: Shards
    near: list[int]
    counts: np.ndarray
    estimated: bool

    @property
    def is_remote(self) -> bool:
        """Do its shards lie somewhere else?"""
        return self.shards.files.cache is not None


def read_settings(
    source: str,
    overrides: Sequence[str] = (),
    caption: str | None = None,
    select: str | None = None,
    batch: int | None = None,
    model: str | None = None,
    context: int | None = None,
) -> Given:
    """The settings of a recipe or for plain shards, with all that was typed.

    Raises: UserError for what is wrong with the recipe or an override.
    """
    recipe = _recipe(source)
    whole = config.read_yaml(recipe or os.devnull, overrides)
    if recipe is None and (strange := sorted(whole.keys() - set(LOOKED_AT))):
        raise UserError(f"{strange[0]}: not looked at here; of shards, {', '.join(LOOKED_AT)} can be given")
    tree: dict[str, Any] = {key: value for key, value in whole.items() if key in LOOKED_AT}
    if recipe is None:
        tree["data"] = {"train": source, **(tree.get("data") or {})}
    section: Any = tree.get("data")
    if isinstance(section, dict):
        named = section.get("train")
        each = [one for one in named.values() if isinstance(one, dict)] if isinstance(named, dict) else []
        for key, value in (("caption", caption), ("select", select)):
            if value is not None:
                section[key] = value
                for one in each:
                    one.pop(key, None)
        if batch is not None:
            section["batch"] = batch
    model_tree: Any = {"arch": model} if model is not None else tree.get("model")
    if isinstance(model_tree, dict):
        tree["model"] = model_tree if context is None else {**model_tree, "context": context}
    cfg = config.check(Looked, tree, str(recipe or source), overrides)
    return Given(cfg, str(recipe) if recipe else None, recipe is not None or "batch" in tree["data"])


def _recipe(source: str) -> Path | None:
    """The recipe that `source` names; None where it means shards."""
    if source.endswith((".yaml", ".yml")):
        return config.find("configs", source)
    shipped = config.shipped_folder("configs") / f"{source}.yaml"
    return shipped if shipped.is_file() and not Path(source).exists() else None


def feed(cfg: models.Settings | None, context: int | None = None) -> Feed:
    """What the model asks of its data, without building it; of none, what CLIP's ViT-B/32 asks.

    Raises: UserError when there is no such model.
    """
    plain = (0.5, 0.5, 0.5)
    if cfg is None:
        from open_clip.tokenizer import SimpleTokenizer

        length = context or CONTEXT
        encode = clip_encode(SimpleTokenizer(context_length=length))
        return Feed("CLIP", Tokenizer(encode, length, 0, True), Preprocess(SIZE, plain, plain))
    tokenizer, side = models.needs(cfg)
    return Feed(cfg.arch, tokenizer, Preprocess(side, plain, plain))


def open_sources(cfg: data.Settings) -> list[Opened]:
    """The sources, each looked at for a caption in the wanted places.

    Raises: UserError when there are no shards, or a place holds no caption: with the keys that are there.
    """
    return [_open(name, cfg) for name in cfg.sources]


def _open(name: str, cfg: data.Settings) -> Opened:
    one = cfg.sources[name]
    caption, select = one.caption or cfg.caption, one.select or cfg.select
    pattern = _few(one.shards, cfg.cache_gb) if select is None else one.shards
    wanted, places = members_for(caption), [caption] if isinstance(caption, str) else list(caption)
    try:
        shards = Shards(pattern, wanted, select, cfg.cache_gb)
    except UserError as error:
        if bare := _without_captions(pattern, wanted, cfg.cache_gb):
            raise UserError(_no_caption(one.shards, bare, list(_spread(bare, _near(bare))), places[0])) from None
        raise error from None
    counts, estimated = shards.counts, pattern != one.shards
    if estimated:
        counts = np.full(len(Files(one.shards, cfg.cache_gb)), max(1, round(len(shards) / len(shards.counts))))
    opened = Opened(name, one.shards, caption, one.weight, shards, _near(shards), counts, estimated)
    tried = list(_spread(shards, opened.near))
    for place in places:
        if not any(_has_caption(shards, shard, row, place) for shard, row in tried):
            bare = _without_captions(pattern, wanted, cfg.cache_gb) or shards
            raise UserError(_no_caption(one.shards, bare, tried, place))
    return opened


def _near(shards: Shards) -> list[int]:
    """The shards that may be read: all local ones, and FAR of the remote ones, spread over them."""
    far = np.array([shards.files.is_remote(i) for i in range(len(shards.counts))])
    near, remote = np.flatnonzero(~far), np.flatnonzero(far)
    chosen = remote[np.linspace(0, len(remote) - 1, FAR).astype(int)] if len(remote) > FAR else remote
    return np.concatenate([near, chosen]).tolist()


def _few(pattern: str, cache_gb: float | None) -> str:
    """The pattern, or one of FAR of its shards, where a count of all of them would fetch all of them."""
    files = Files(pattern, cache_gb)
    unknown = [i for i in range(len(files)) if files.is_remote(i) and files.size(i) is None]
    if len(unknown) <= FAR or len(unknown) - len(files.claims()) <= FAR:
        return pattern
    chosen = [files.names[i] for i in np.linspace(0, len(files) - 1, FAR).astype(int)]
    return "{" + ",".join(re.sub(r"([{},\\])", r"\\\1", name) for name in chosen) + "}"


def _spread(shards: Shards, near: list[int]) -> Iterator[tuple[int, int]]:
    """(shard, row) of up to TRIED samples, spread over the shards that may be read."""
    ends = np.cumsum(shards.counts[near])
    for number in np.linspace(0, ends[-1] - 1, min(TRIED, int(ends[-1]))).astype(int):
        at = int(np.searchsorted(ends, number, side="right"))
        yield near[at], int(number - ends[at] + shards.counts[near[at]])


def _has_caption(shards: Shards, shard: int, row: int, place: str) -> bool:
    try:
        return bool(caption_of(shards, shard, row, place))
    except (ValueError, OSError):
        return False


def _without_captions(pattern: str, wanted: Wanted, cache_gb: float | None) -> Shards | None:
    """The same shards with all their pictures, where none of those that may be read has the members of a caption."""
    try:
        shards = Shards(pattern, ("image",), None, cache_gb)
    except UserError:
        return None  # what was said before is the reason
    groups = tuple((name,) if isinstance(name, str) else tuple(name) for name in wanted)
    return None if any(shards.files.kept(shard).count(groups) for shard in _near(shards)[:FAR]) else shards


def _no_caption(pattern: str, shards: Shards, tried: list[tuple[int, int]], place: str) -> str:
    """What is there instead of a caption in `place`, and what to type."""
    having, words, examples, texts = Counter[str](), Counter[str](), dict[str, str](), 0
    for shard, row in tried:
        texts += _has_caption(shards, shard, row, "txt")
        for key, value in _json_of(shards, shard, row).items():
            having[key] += 1
            words[key] += words_of(value)
            examples.setdefault(key, example(value))
    said = f"{pattern}: data.caption={place} finds no caption in the {len(tried)} samples tried"
    if having:
        keys = [f"{key} ({share(n / len(tried))}, such as {examples[key]})" for key, n in having.most_common(8)]
        said += f"; the .json files have {', '.join(keys)}"
    candidates = [key for key in having if words[key] >= 2 * having[key]]
    close = difflib.get_close_matches(place.removeprefix("json:"), [key for key in having if words[key]], 1)
    if close or candidates:
        return f"{said}; type data.caption=json:{(close or [max(candidates, key=lambda key: words[key])])[0]}"
    if texts and place != "txt":
        return f"{said}; type data.caption=txt"
    return f"{said}; `clipkit data pack` puts pictures and their captions into shards"


def _json_of(shards: Shards, shard: int, row: int) -> dict[str, Any]:
    try:
        return json_object(shards.read(shard, row, "json"))
    except (ValueError, OSError):
        return {}


def words_of(value: Any) -> int:
    """Words of a text or a list of texts; 0 for anything else."""
    if isinstance(value, list):
        return sum(words_of(one) for one in value if isinstance(one, str))
    return len(value.split()) if isinstance(value, str) else 0


def example(value: Any, most: int = 60) -> str:
    """A value as one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def share(value: float) -> str:
    """A share for people: `12 %`, `0.3 %`; none and all are said only of none and all."""
    if value in (0, 1):
        return f"{value:.0%}".replace("%", " %")
    if 0.1 <= value < 0.995:
        return f"{100 * value:.0f} %"
    return f"{min(max(100 * value, 0.01), 99.99):.2g} %" if value < 0.1 else f"{min(100 * value, 99.99):.4g} %"
