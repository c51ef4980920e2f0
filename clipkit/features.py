"""The embeddings of evaluation sets by one model: each picture and text once, on all ranks, kept by content.

CACHE/MODEL/KEY/000000.npy: float32 [ROWS, D], a part of the rows. MODEL names weights, architecture, preprocessing,
tokenizer and precision, KEY the pictures' bytes or the texts, so that nothing old is ever taken for new. A part is
written when it is done: what was killed goes on there, and what was done before is free.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit import distributed, hashing
from clipkit.errors import UserError
from clipkit.log import Progress, say
from clipkit.models import DualEncoder, Named, embed_images, embed_texts
from clipkit.sets import Samples

ROWS = 1024  # of a part: some seconds of a CPU, and a file of some megabytes
HELD = 2 << 30
"""Bytes of rows that stay in memory for the next task, where no disk keeps them; else far less."""


class Features:
    """Unit rows float32 [n, D] on the CPU, the same on all ranks, whatever their number, workers or batch.

    `cache` is the folder that keeps them (null: none does); the model is loaded when something is not there. `batch`
    rows are in the model at once; before a GPU `workers` processes decode. `begin_part` is called before some thousand
    rows are embedded, and may raise a ClipkitError, which ends the work on all ranks.
    """

    def __init__(
        self,
        model: Named | DualEncoder,
        cache: Path | None = None,
        workers: int = 0,
        batch: int = 64,
        begin_part: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self.workers, self.batch, self.begin_part = model, workers, batch, begin_part
        self.cache = cache / model.digest if cache and isinstance(model, Named) else None
        self._held: dict[str, Tensor] = {}

    @property
    def model(self) -> DualEncoder:
        """The model itself, loaded now if it was not."""
        return self._model.model if isinstance(self._model, Named) else self._model

    @cached_property
    def scale(self) -> tuple[float, float | None]:
        """The factor of the model's similarities, and the bias behind it if it has one."""
        row = self.kept("scale", [], self._scale)
        return float(row[0]), None if row[1].isnan() else float(row[1])

    def _scale(self) -> Tensor:
        with torch.inference_mode():
            out = self.model()
        return torch.tensor([float(out.scale), float("nan") if out.bias is None else float(out.bias)])

    def images(self, samples: Samples) -> Tensor:
        """Of all pictures of a set [len(samples), D].

        Raises: UserError naming the first picture that cannot be read: a score over fewer samples is another score.
        """
        return self._rows("images", [samples.digest], len(samples), lambda span: self._see(samples, span))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Of texts [len(texts), D]; each different one is computed once."""
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        row = {text: i for i, text in enumerate(unique)}
        rows = self._rows("texts", unique, len(unique), lambda span: self._read(unique[span.start : span.stop]))
        return rows[torch.tensor([row[text] for text in texts], dtype=torch.long)]

    def kept(self, name: str, facts: Sequence[Any], make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, kept under a name and the facts that it depends on beside the model. All ranks must come
        here, and `make` the same on each of them."""
        key = _key(name, *facts)
        if key not in self._held:
            found = _load(self.cache / f"{key}.npy") if self.cache else None
            if self.cache is None:
                found = make()
            elif not bool(distributed.total(torch.tensor(float(found is not None))) == distributed.world()):
                found = make()
                if distributed.rank() == 0:
                    _keep(self.cache / f"{key}.npy", found)
            assert found is not None
            self._hold(key, found)
        return self._held[key]

    def _rows(self, name: str, facts: Sequence[Any], count: int, make: Callable[[range], Tensor]) -> Tensor:
        """The rows that `make` gives for spans of 0..count-1, each rank its part of them."""
        key = _key(name, count, *facts)
        if key in self._held:
            return self._held[key]
        spans = [range(start, min(start + ROWS, count)) for start in range(0, count, ROWS)]
        mine = distributed.share(len(spans))
        rows = []
        with distributed.together(), Progress(f"embed {name}", sum(len(spans[i]) for i in mine), hush_s=2) as bar:
            for i in mine:
                path = self.cache / key / f"{i:06d}.npy" if self.cache else None
                part = _load(path, len(spans[i])) if path else None
                if part is None:
                    self.begin_part()
                    part = make(spans[i])
                    if path:
                        _keep(path, part)
                rows.append(part)
                bar.update(sum(map(len, rows)))
        width = int(distributed.largest(torch.tensor(rows[0].shape[1] if rows else 0)))  # a rank may have none
        whole = distributed.gather_uneven(torch.cat([torch.empty(0, width), *rows]))
        self._hold(key, whole)
        return whole

    def _hold(self, key: str, rows: Tensor) -> None:
        """Keep rows in memory, and let go of the oldest where they are too many."""
        self._held[key] = rows
        most = HELD // 8 if self.cache else HELD
        while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > most:
            self._held.pop(next(iter(self._held)))

    def _see(self, samples: Samples, span: range) -> Tensor:
        rows = []
        for numbers, part, bad in embed_images(self.model, samples, span, self.batch, self.workers):
            for number, reason in bad.items():
                raise UserError(f"{samples.name(number)}: {reason}; mend or remove it")
            for number, good in zip(numbers, part.isfinite().all(1).tolist(), strict=True):
                if not good:
                    raise UserError(f"{samples.name(number)}: its embedding is not finite; the model is damaged")
            rows.append(part)
        return torch.cat(rows)

    def _read(self, texts: Sequence[str]) -> Tensor:
        rows = embed_texts(self.model, texts)
        for text, good in zip(texts, rows.isfinite().all(1).tolist(), strict=True):
            if not good:
                raise UserError(f"text {text[:80]!r}: its embedding is not finite; the model is damaged")
        return rows


def _key(name: str, *facts: Any) -> str:
    """Under what rows are kept.

    Raises: UserError, on all ranks, when they are not of the same data.
    """
    digest = hashing.of(name, *facts)
    distributed.agree(f"the {name} to score: their data differ from machine to machine", int(digest[:15], 16))
    return f"{name}-{digest}"


def _load(path: Path, rows: int | None = None) -> Tensor | None:
    """A kept part; None where there is none, or it is not whole."""
    with suppress(OSError, ValueError, EOFError):
        found = np.load(path, allow_pickle=False)
        if rows is None or (found.ndim == 2 and len(found) == rows):
            return torch.from_numpy(found)
    return None


def _keep(path: Path, rows: Tensor) -> None:
    """Write a part in one piece; a cache that cannot be written costs time alone."""
    work = path.with_name(f".{path.stem}.{distributed.rank()}.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(work, rows.numpy())
        work.replace(path)
    except OSError as error:
        say(f"{path}: not kept ({error.strerror})")
        with suppress(OSError):
            work.unlink(missing_ok=True)
