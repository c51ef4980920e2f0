"""Embeddings of a set's samples by their flat numbers: from a model, or from a folder that `clipkit embed` wrote."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from clipkit import models
from clipkit.errors import UserError, reason_of
from clipkit.shards import Folder, Shards, caption_of
from clipkit.vectors import Vectors
from clipkit.vectors.in_shards import rows_of

PART = 20_000  # samples whose embeddings are in memory at once
Lost = dict[str, int]
Rows = tuple[np.ndarray, np.ndarray, Lost]
Scores = tuple[np.ndarray, np.ndarray, Lost]


class Embedded(Protocol):
    """What knows the embeddings of the samples of a set."""

    width: int

    def images(self, numbers: np.ndarray) -> Iterator[Rows]:
        """Part by part: (numbers, embeddings of their pictures, float32 [n, width], what had none by reason)."""
        ...

    def scores(self, numbers: np.ndarray) -> Iterator[Scores]:
        """Part by part: (numbers, cosine of picture and caption, float64 [n], what had none by reason)."""
        ...


class ByModel:
    """Embeddings computed when they are asked for."""

    def __init__(self, model: models.DualEncoder, source: Shards | Folder, caption: str, workers: int) -> None:
        self.model, self.source, self.caption, self.workers = model, source, caption, workers
        self.width: int = model.spec["model_cfg"]["embed_dim"]

    def images(self, numbers: np.ndarray) -> Iterator[Rows]:
        """As Embedded says."""
        for good, rows, bad in models.embed_images(self.model, self.source, numbers.tolist(), workers=self.workers):
            yield (
                np.array(good, np.int64),
                rows.numpy(),
                dict(Counter(f"unreadable: {reason}" for reason in bad.values())),
            )

    def scores(self, numbers: np.ndarray) -> Iterator[Scores]:
        """As Embedded says."""
        for part, rows, bad in self.images(numbers):
            lost = Counter(bad)
            captions = [self._caption(number, lost) for number in part.tolist()]
            worded = np.array([text is not None for text in captions], bool)
            texts = models.embed_texts(self.model, [text for text in captions if text is not None]).numpy()
            yield part[worded], (rows[worded].astype(np.float64) * texts).sum(1), dict(lost)

    def _caption(self, number: int, lost: Counter[str]) -> str | None:
        """The first caption of a sample; None, and counted, where there is none."""
        assert isinstance(self.source, Shards), "plain files are compared by their pictures alone"
        try:
            return caption_of(self.source, *self.source.place(number), self.caption)[0]
        except (ValueError, OSError) as error:
            lost[f"no caption: {reason_of(error)}"] += 1
            return None


class ByFolder:
    """Embeddings that lie in a folder; a sample is known by its shard's path and its picture's place in there.

    Raises: UserError when the folder was made of other shards, or of these before they changed.
    """

    def __init__(self, folder: str, source: Shards, caption: str) -> None:
        self.vectors, self.caption = pictures_of(folder), caption
        self.width = self.vectors.width
        self._worded = np.array([bool(text) for text in self.vectors.column("caption")], bool)
        self._at = rows_of(self.vectors, source)
        self._check(source)

    def _check(self, source: Shards) -> None:
        folder, about, here = self.vectors.folder, self.vectors.about, int((self._at >= 0).sum())
        if not here:
            raise UserError(
                f"{folder}: has no vector of {source.pattern}, it was made of {about.get('source', 'something else')}; "
                f"`clipkit embed MODEL {source.pattern} --out VECTORS` makes a folder that has"
            )
        left_out = sum(about.get("left_out", {}).values())
        if len(source) - here > left_out:
            raise UserError(
                f"{folder}: has vectors of {here} of the {len(source)} samples of {source.pattern}, and tells of "
                f"{left_out} that were left out; embed again"
            )

    def images(self, numbers: np.ndarray) -> Iterator[Rows]:
        """As Embedded says."""
        for first in range(0, len(numbers), PART):
            part = numbers[first : first + PART]
            at = self._at[part]
            lost = {"no vector": int((at < 0).sum())} if (at < 0).any() else {}
            yield part[at >= 0], self.vectors.take("image", at[at >= 0]), lost

    def scores(self, numbers: np.ndarray) -> Iterator[Scores]:
        """As Embedded says.

        Raises: UserError when the folder has no texts, or those of other captions.
        """
        made_of, texts = self.vectors.about.get("caption"), "text" in self.vectors.kinds
        if not texts or made_of != self.caption:
            found = f"the captions of {made_of}" if texts else "no captions"
            raise UserError(
                f"{self.vectors.folder}: was made with {found}, --caption {self.caption} is asked for; "
                "embed again with it"
            )
        for part, rows, lost in self.images(numbers):
            at = self._at[part]
            worded = self._worded[at]
            if not worded.all():
                lost = {**lost, "no caption": int((~worded).sum())}
            products = _unit(rows) * _unit(self.vectors.take("text", at))
            yield part[worded], products.sum(1)[worded].astype(np.float64), lost


def pictures_of(folder: str) -> Vectors:
    """A vectors folder that holds embeddings of pictures.

    Raises: UserError when it is none, or has none.
    """
    held = Vectors(folder)
    if "image" not in held.kinds or not len(held):
        raise UserError(f"{folder}: img_emb/ holds no embeddings; embed again")
    return held


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1 again: rounding to float16 changed it by up to 0.0005."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def loader_workers(workers: int | None) -> int:
    """Processes that decode pictures for a model, where `workers` may leave their number to us."""
    return max(1, min(8, (os.cpu_count() or 1) // 2)) if workers is None else workers


def open_embedded(source: Shards, model: str | None, folder: str | None, caption: str, workers: int | None) -> Embedded:
    """The embeddings of a source opened without a selection, by whichever of a model and a vectors folder is given.

    Raises: UserError when it is not to be had, or not of this source.
    """
    assert (model is None) != (folder is None), (model, folder)
    if folder is not None:
        return ByFolder(folder, source, caption)
    assert model is not None
    return ByModel(models.load(model), source, caption, loader_workers(workers))
