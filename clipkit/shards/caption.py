"""Where a sample's captions are, and reading them: `txt`, `json:KEY`, or several of these with probabilities."""

import json
import random
from collections.abc import Mapping
from typing import Any

from clipkit.errors import UserError
from clipkit.shards.source import Shards

Choice = str | Mapping[str, float]
"""One place of captions, or several with their probabilities."""


def members_for(caption: Choice) -> tuple[tuple[str, ...], ...]:
    """The members that a sample needs: a picture, and one of those that can hold its caption.

    Raises: UserError for a place that is not `txt` or `json:KEY`.
    """
    places = [caption] if isinstance(caption, str) else list(caption)
    for place in places:
        if place != "txt" and not (place.startswith("json:") and len(place) > 5):
            raise UserError(f"caption: 'txt' or 'json:KEY' is needed, got '{place}'")
    if isinstance(caption, Mapping):
        places = [place for place, share in caption.items() if share > 0]
    if not places:
        raise UserError("caption: a place with a probability above 0 is needed, such as {txt: 0.5, json:alt: 0.5}")
    return ("image",), tuple(dict.fromkeys("txt" if place == "txt" else "json" for place in places))


def caption_of(source: Shards, shard: int, row: int, caption: str) -> list[str]:
    """The captions of a sample: the text of its `.txt`, or the text or list of texts under a key of its `.json`.

    Raises: ValueError when there is none, or it is empty or not UTF-8.
    """
    texts: list[Any]
    if caption == "txt":
        try:
            texts = [source.read(shard, row, "txt").decode("utf-8-sig")]
        except UnicodeDecodeError as error:
            raise ValueError("caption is not UTF-8") from error
    else:
        value = json_object(source.read(shard, row, "json")).get(caption[5:])
        texts = value if isinstance(value, list) else [value]
    good = [text.strip() for text in texts if isinstance(text, str) and text.strip() and _is_unicode(text)]
    if not good:
        raise ValueError("empty caption")
    return good


def draw_caption(source: Shards, shard: int, row: int, caption: Choice, dice: random.Random) -> str:
    """One caption of a sample: a place is drawn by its probability among those where the sample has one, then a text
    of the list there.

    Raises: ValueError when the sample has a caption in none of them.
    """
    if isinstance(caption, str):
        texts = caption_of(source, shard, row, caption)
        return texts[dice.randrange(len(texts))]
    left = {place: caption[place] for place in sorted(caption) if caption[place] > 0}  # in whatever order it is written
    reason = ValueError("empty caption")
    while left:
        place = dice.choices(list(left), list(left.values()))[0]
        try:
            texts = caption_of(source, shard, row, place)
            return texts[dice.randrange(len(texts))]
        except ValueError as error:
            reason = error
            del left[place]
    raise reason


def json_object(data: bytes) -> dict[str, Any]:
    """A sample's `.json`; empty where it is something else than an object.

    Raises: ValueError when it is broken.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("broken json") from error
    return value if isinstance(value, dict) else {}


def json_keys(source: Shards, shard: int, row: int) -> set[str]:
    """The keys of a sample's `.json`; none where it has no readable one."""
    try:
        return set(json_object(source.read(shard, row, "json")))
    except (ValueError, OSError):
        return set()


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no tokenizer can encode."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
