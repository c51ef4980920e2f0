"""What is asked, and how its parts become one vector.

A vector orders the rows of an index by their products with it, and what is the same for all rows orders nothing. So
parts are weighed by how far their products spread over rows of the index: words' with pictures spread far less than
pictures' among themselves, and added as they are, words beside a picture would change little.

What is not wanted is not subtracted as it is either. All texts lie in one cone (two random ones have a cosine of 0.5
and more), their products with pictures rise and fall together, and a full weight would take away what makes the query
find pictures of its kind at all. First the concept is taken out of the query: the rest of a regression on it, to which
pictures with it and without are the same. From that rest it is subtracted with half a weight: with a whole one,
pictures that show neither would come as early as those that show both. `a red car` without `red` is `a car`, rather
not red; and however large the weight, of two pictures as good for the rest the one without the concept comes first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipkit.errors import UserError
from clipkit.sets import suggested

FEWEST = 32  # rows whose spread says something
FLAT = 1e-4
"""A spread, or a length, that is rounding."""
TAKEN = 0.5
"""What a weight of --not counts beside one of what is wanted."""
CANCELLED = "search: the parts of the query cancel each other out; nothing is left to search by"
ASKED = ("text", "image", "key", "id", "not", "weights")
"""The fields of a query in JSON; all but `weights` may be one or a list."""

Kind = Literal["text", "image", "key", "id", "vector"]
Image = str | bytes | Path
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "text": ((str,), "a text"), "image": ((str, bytes, Path), "a file, or its bytes,"), "key": ((str,), "a text"),
    "id": ((int, np.integer), "a whole number"), "vector": ((np.ndarray, list, tuple), "an array"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Part:
    """One thing that is wanted, or with a negative weight is not: words; a picture (its file, or its bytes); the row
    with a key or a number (`id`); or a vector [D]."""

    kind: Kind
    value: str | bytes | Path | int | np.ndarray
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight == 0 or not math.isfinite(self.weight):
            raise UserError(f"search: weights are numbers other than 0, got {self.weight}")
        known, what = TYPES[self.kind]
        if not isinstance(self.value, known) or isinstance(self.value, bool):
            raise UserError(f"search: {self.kind}: {what} is needed, got {str(self.value)[:60]!r}")
        if isinstance(self.value, str) and self.kind == "text" and not self.value.strip():
            raise UserError("search: the text is empty")


@dataclass(frozen=True)
class Query:
    """Parts that are found together."""

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not any(part.weight > 0 for part in self.parts):
            more = "; --not takes away from them" if self.parts else ""
            raise UserError(f"search: words, a picture or a key to search by are needed{more}")


def query(
    text: str | Sequence[str] | None = None,
    image: Image | Sequence[Image] | None = None,
    key: str | Sequence[str] | None = None,
    id: int | Sequence[int] | None = None,
    without: str | Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Query:
    """A query for all of these together, `without` some texts.

    `weights` are of the parts in this order, `without` last (1 each, and may be left away).
    Raises: UserError when nothing is wanted, or the weights are of another number.
    """
    wanted: list[tuple[Kind, Any]] = [
        *(("text", each) for each in _listed(text)),
        *(("image", each) for each in _listed(image)),
        *(("key", each) for each in _listed(key)),
        *(("id", each) for each in _listed(id)),
    ]
    unwanted = _listed(without)
    given = [1.0] * len(wanted) if weights is None else [float(weight) for weight in weights]
    if len(given) not in (len(wanted), len(wanted) + len(unwanted)):
        beside = f", or {len(wanted) + len(unwanted)} with those of --not" if unwanted else ""
        raise UserError(f"search: as many weights as parts are needed: {len(wanted)}{beside}; got {len(given)}")
    given += [1.0] * (len(wanted) + len(unwanted) - len(given))
    if low := [weight for weight in given if not weight > 0]:
        raise UserError(f"search: weights above 0 are needed, got {low[0]:g}; --not says what is not wanted")
    parts = [Part(kind, value, weight) for (kind, value), weight in zip(wanted, given, strict=False)]
    parts += [Part("text", each, -weight) for each, weight in zip(unwanted, given[len(wanted) :], strict=True)]
    return Query(tuple(parts))


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return [given] if isinstance(given, str | bytes | Path | int | float | np.generic) else list(given)


def from_fields(fields: Any) -> Query:
    """A query of a JSON object with the fields ASKED.

    Raises: UserError when it is none.
    """
    if not isinstance(fields, dict):
        raise UserError(f'search: an object such as {{"text": "a red car"}} is needed, got {str(fields)[:60]!r}')
    for name, value in fields.items():
        if name not in ASKED:
            raise UserError(f"search: unknown field '{name}'; {suggested(name, ASKED)}")
        known = {"weights": (int, float), "id": (int,)}.get(name, (str,))
        if not all(isinstance(each, known) and not isinstance(each, bool) for each in _listed_json(value)):
            what = {"weights": "numbers", "id": "whole numbers"}.get(name, "texts")
            raise UserError(f"search: {name}: {what} are needed, got {str(value)[:60]!r}")
    weights = fields.get("weights")
    return query(
        fields.get("text"), fields.get("image"), fields.get("key"), fields.get("id"), fields.get("not"),
        None if weights is None else _listed_json(weights),
    )  # fmt: skip


def _listed_json(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def combined(rows: Sequence[np.ndarray], weights: Sequence[float], sample: np.ndarray | None) -> np.ndarray:
    """One unit vector [D] of the unit rows [D] of some parts, by their weights; those that are negative take away.

    `sample` [m, D] are rows of the index, by which the parts are weighed; None where there are too few: then lengths
    and cosines stand for spreads and correlations.
    Raises: UserError when nothing is left.
    """
    stacked, given = np.asarray(rows, np.float64), np.asarray(weights, np.float64)
    if len(stacked) == 1:
        return _unit(stacked[0])
    seen = np.eye(stacked.shape[1]) if sample is None else sample - sample.mean(0, dtype=np.float64)
    scaled = stacked / np.maximum(_spreads(seen, stacked), FLAT)[:, None]
    wanted, unwanted = given[given > 0] @ scaled[given > 0], scaled[given < 0]
    if not len(unwanted):
        return _unit(wanted)
    told = np.linalg.lstsq(seen @ unwanted.T, seen @ wanted, rcond=1e-6)[0]
    rest = wanted - np.maximum(told, 0) @ unwanted  # below 0 the query speaks against the concept already
    before, left = _spreads(seen, np.stack([wanted, rest]))
    if left <= FLAT * before:
        raise UserError(CANCELLED)
    return _unit(rest + left / max(before, FLAT) * TAKEN * given[given < 0] @ unwanted)


def _spreads(seen: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How far the products of rows [n, D] with those seen [m, D], whose mean is 0, spread: [n]."""
    return np.sqrt(np.mean((seen @ rows.T) ** 2, 0))


def _unit(row: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(row))
    if not length > FLAT:
        raise UserError(CANCELLED)
    return (row / length).astype(np.float32)
