"""Embeddings of a set's samples by their flat numbers: from a model, or from a folder that `clipkit embed` wrote."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipkit import models, vectors
from clipkit.datatools.curate.metadata import starts
from clipkit.errors import UserError, reason_of
from clipkit.shards import Folder, Shards, caption_of
from clipkit.shards.remote import is_remote

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
        self.folder, self.caption = Path(folder), caption
        self.about = vectors.about(self.folder)
        self._parts = list(vectors.parts(self.folder, "img_emb"))
        records = vectors.records(self.folder)
        ends = np.cumsum([len(part) for part in self._parts])
        if not len(ends) or ends[-1] != len(records):
            count = int(ends[-1]) if len(ends) else 0
            raise UserError(f"{folder}: {count} embeddings but metadata of {len(records)}; embed again")
        self._ends, self.width = ends, self._parts[0].shape[1]
        self._worded = np.array([bool(text) for text in records.column("caption").to_pylist()])
        self._at = _match(self.folder, records, source)
        self._check(source)

    def _check(self, source: Shards) -> None:
        here = int((self._at >= 0).sum())
        if not here:
            raise UserError(
                f"{self.folder}: has no vector of {source.pattern}, it was made of {self.about['source']}; "
                f"`clipkit embed MODEL {source.pattern} --out VECTORS` makes a folder that has"
            )
        left_out = sum(self.about.get("left_out", {}).values())
        if len(source) - here > left_out:
            raise UserError(
                f"{self.folder}: has vectors of {here} of the {len(source)} samples of {source.pattern}, and tells of "
                f"{left_out} that were left out; embed again"
            )

    def images(self, numbers: np.ndarray) -> Iterator[Rows]:
        """As Embedded says."""
        for first in range(0, len(numbers), PART):
            part = numbers[first : first + PART]
            at = self._at[part]
            lost = {"no vector": int((at < 0).sum())} if (at < 0).any() else {}
            yield part[at >= 0], self._take(self._parts, at[at >= 0]), lost

    def scores(self, numbers: np.ndarray) -> Iterator[Scores]:
        """As Embedded says.

        Raises: UserError when the folder has no texts, or those of other captions.
        """
        made_of = self.about.get("caption")
        texts = list(vectors.parts(self.folder, "text_emb"))
        if not texts or made_of != self.caption:
            found = f"the captions of {made_of}" if texts else "no captions"
            raise UserError(
                f"{self.folder}: was made with {found}, --caption {self.caption} is asked for; embed again with it"
            )
        for part, rows, lost in self.images(numbers):
            at = self._at[part]
            worded = self._worded[at]
            if not worded.all():
                lost = {**lost, "no caption": int((~worded).sum())}
            products = _unit(rows) * _unit(self._take(texts, at))
            yield part[worded], products.sum(1)[worded].astype(np.float64), lost

    def _take(self, parts: list[np.ndarray], at: np.ndarray) -> np.ndarray:
        """The rows `at` of the folder, float32."""
        out = np.empty((len(at), self.width), np.float32)
        which = np.searchsorted(self._ends, at, side="right")
        for i in np.unique(which).tolist():
            here = which == i
            out[here] = parts[i][at[here] - (self._ends[i] - len(parts[i]))]
        return out


def whole_folder(folder: str) -> tuple[dict[str, Any], np.ndarray]:
    """(what a vectors folder says of itself, the embeddings [n, D] of all its pictures).

    Raises: UserError when it is none, or has none.
    """
    about = vectors.about(Path(folder))
    parts = list(vectors.parts(Path(folder), "img_emb"))
    if not sum(map(len, parts)):
        raise UserError(f"{folder}: img_emb/ holds no embeddings; embed again")
    return about, np.concatenate(parts)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1 again: rounding to float16 changed it by up to 0.0005."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _match(folder: Path, records: Any, source: Shards) -> np.ndarray:
    """The row of the folder of each flat number, -1 where it has none.

    Raises: UserError when a shard's pictures lie elsewhere now.
    """
    column = records.column("shard").combine_chunks().dictionary_encode()
    codes = column.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(column.dictionary) + 1))
    rows_of = {path: order[bounds[i] : bounds[i + 1]] for i, path in enumerate(column.dictionary.to_pylist())}
    offsets, sizes = (records.column(name).to_numpy() for name in ("offset", "size"))
    first, at = starts(source), np.full(len(source), -1, np.int64)
    for shard, name in enumerate(source.files.names):
        rows = rows_of.get(name if is_remote(name) else str(Path(name).resolve()))
        if rows is None:
            continue
        begins, lengths = source.files.kept(shard).spans["image"]
        by_place = np.argsort(begins, kind="stable")
        found = np.searchsorted(begins[by_place], offsets[rows])
        place = by_place[np.minimum(found, len(begins) - 1)] if len(begins) else np.full(len(rows), -1)
        same = place >= 0
        same[same] = (begins[place[same]] == offsets[rows][same]) & (lengths[place[same]] == sizes[rows][same])
        if not same.all():
            raise UserError(f"{folder}: {int((~same).sum())} pictures of {name} lie elsewhere now; embed again")
        seen = place < source.counts[shard]
        at[first[shard] + place[seen]] = rows[seen]
    return at


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
