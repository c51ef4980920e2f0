"""From what was sent to a query."""

import base64
import binascii
from typing import Any

from clipkit.errors import UserError
from clipkit.search import Part, Query
from clipkit.serve.schemas import SearchAsked


def query(asked: SearchAsked) -> Query:
    """The parts that are asked for, with their weights.

    Raises: UserError when nothing is wanted, or the weights are of another number.
    """
    wanted: list[tuple[Any, Any]] = [
        *(("text", text) for text in _listed(asked.text)),
        *(("image", picture(image)) for image in _listed(asked.image)),
        *(("key", key) for key in asked.keys),
        *(("id", number) for number in asked.ids),
    ]
    weights = asked.weights or [1.0] * len(wanted)
    if len(weights) != len(wanted):
        raise UserError(f"weights: as many as parts are needed: {len(wanted)}; got {len(weights)}")
    parts = [Part(kind, value, weight) for (kind, value), weight in zip(wanted, weights, strict=True)]
    return Query((*parts, *(Part("text", text, -1.0) for text in asked.without)))


def picture(text: str) -> bytes:
    """The bytes that a text in base64 stands for.

    Raises: UserError when it is none.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("image: a file in base64 is needed") from None


def _listed(given: str | list[str] | None) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else given
