"""Queries to vectors: texts and pictures through the model, keys and numbers to rows of the index."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clipkit import models
from clipkit.errors import UserError, reason_of
from clipkit.search.query import FEWEST, Part, Query, combined
from clipkit.vectors import Stored

SAMPLE = 1024
"""Rows of the index by which the parts of a query are weighed."""
LARGEST = 1 << 28  # bytes of a picture
READABLE = "; JPEG, PNG, WebP, GIF and BMP pictures can be read"

Row = np.ndarray | UserError
"""A unit vector float32 [D], or why there is none."""


class Asked:
    """The vectors of queries to an index; `model` gives the model when it is first needed."""

    def __init__(self, stored: Stored, model: Callable[[], models.DualEncoder]) -> None:
        self.stored, self._model = stored, model
        self._samples: dict[str, np.ndarray | None] = {}

    def vectors(self, queries: Sequence[Query], kind: str) -> list[Row]:
        """The vector of each query for rows of a kind; what one lacks costs no other."""
        rows = iter(self._rows([part for each in queries for part in each.parts], kind))
        out: list[Row] = []
        for each in queries:
            found = [next(rows) for _ in each.parts]
            sound = [row for row in found if not isinstance(row, UserError)]
            sample = self._sample(kind) if len(found) > 1 else None
            try:
                if len(sound) < len(found):
                    raise next(row for row in found if isinstance(row, UserError))
                out.append(combined(sound, [part.weight for part in each.parts], sample))
            except UserError as error:
                out.append(error)
        return out

    def own(self, asked: Query) -> list[int]:
        """The numbers of the rows that a query names.

        Raises: UserError when one is not there.
        """
        return [self._number(part) for part in asked.parts if part.kind in ("key", "id")]

    def _sample(self, kind: str) -> np.ndarray | None:
        """Rows [m, D] spread over the index; None where there are too few."""
        if kind not in self._samples:
            numbers = np.unique(np.linspace(0, len(self.stored) - 1, min(SAMPLE, len(self.stored))).astype(np.int64))
            rows = self.stored.rows(kind, numbers)
            rows = rows[rows.any(1)]  # zeros stand for what a sample lacks
            self._samples[kind] = rows if len(rows) >= FEWEST else None
        return self._samples[kind]

    def _rows(self, parts: Sequence[Part], kind: str) -> list[Row]:
        found: dict[int, Row] = {}
        texts = {i: str(part.value) for i, part in enumerate(parts) if part.kind == "text"}
        pictures = {i: part.value for i, part in enumerate(parts) if part.kind == "image"}
        if texts:
            rows = models.embed_texts(self._model(), list(texts.values())).numpy()
            found.update((i, _sound(row, f"text {texts[i][:80]!r}")) for i, row in zip(texts, rows, strict=True))
        if pictures:
            found.update(zip(pictures, _of_pictures(self._model(), list(pictures.values())), strict=True))
        for i, part in enumerate(parts):
            if i not in found:
                try:
                    found[i] = self._vector(part.value) if part.kind == "vector" else self._own_row(part, kind)
                except UserError as error:
                    found[i] = error
        return [found[i] for i in range(len(parts))]

    def _own_row(self, part: Part, kind: str) -> np.ndarray:
        row = self.stored.rows(kind, np.array([self._number(part)]))
        if not row.any():
            raise UserError(f"{self.stored.folder}: the row with the {part.kind} '{part.value}' has no {kind}")
        return unit(row)[0]

    def _number(self, part: Part) -> int:
        """The row that a part names by key or number, if it was not removed."""
        removed = self.stored.removed
        if part.kind == "id":
            number = int(part.value)  # pyright: ignore[reportArgumentType]
            if not 0 <= number < len(self.stored):
                raise UserError(
                    f"{self.stored.folder}: no row has the id {number}; they go up to {len(self.stored) - 1}"
                )
            if removed is not None and removed[number]:
                raise UserError(f"{self.stored.folder}: the row with the id {number} was removed")
            return number
        key = str(part.value)
        named = self.stored.records.with_keys([key]).get(key, [])
        numbers = [number for number in named if removed is None or not removed[number]]
        if len(numbers) == 1:
            return numbers[0]
        if not numbers:
            raise UserError(
                f"{self.stored.folder}: " + (f"the row with the key '{key}' was removed" if named else self._no(key))
            )
        some = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        raise UserError(f"{self.stored.folder}: {len(numbers)} rows have the key '{key}'; name one by --id: {some}")

    def _no(self, key: str) -> str:
        stem = os.path.splitext(key)[0]
        there = stem != key and self.stored.records.with_keys([stem])
        return f"no row has the key '{key}'" + (f"; did you mean '{stem}'?" if there else "")

    def _vector(self, given: object) -> np.ndarray:
        row = np.asarray(given, np.float64)
        if row.shape != (self.stored.width,):
            raise UserError(f"search: a vector of {self.stored.width} numbers is needed, got {list(row.shape)}")
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(row))
        if not (math.isfinite(length) and length > 0):
            raise UserError("search: a vector of finite numbers, not all of them 0, is needed")
        return (row / length).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [n, D] of length 1: codes and float16 change it a little; zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _sound(row: np.ndarray, name: str) -> Row:
    return row if np.isfinite(row).all() else UserError(f"{name}: its embedding is not finite; the model is damaged")


def _of_pictures(model: models.DualEncoder, given: Sequence[object]) -> list[Row]:
    pictures, out = _Pictures(given), dict[int, Row]()
    for numbers, rows, bad in models.embed_images(model, pictures, range(len(given))):
        out.update(
            (number, _sound(row, pictures.name(number))) for number, row in zip(numbers, rows.numpy(), strict=True)
        )
        out.update((number, _refused(pictures.name(number), reason)) for number, reason in bad.items())
    return [out[number] for number in range(len(given))]


def _refused(name: str, reason: str) -> UserError:
    return UserError(f"{name}: {reason}{READABLE if reason == 'not a picture' else ''}")


class _Pictures:
    """Pictures to search by: files, or their bytes."""

    def __init__(self, given: Sequence[object]) -> None:
        self.given = given

    def name(self, number: int) -> str:
        """For messages."""
        one = self.given[number]
        return "the picture" if isinstance(one, bytes) else str(one)

    def image(self, number: int) -> bytes:
        """The bytes of a picture.

        Raises: ValueError with the reason.
        """
        one = self.given[number]
        if isinstance(one, bytes):
            return one
        path = Path(str(one))
        if not path.is_file():
            raise ValueError("a folder; one picture is needed" if path.is_dir() else "no such file")
        try:
            if path.stat().st_size > LARGEST:
                raise ValueError("image too large")
            return path.read_bytes()
        except OSError as error:
            raise ValueError(reason_of(error)) from None
