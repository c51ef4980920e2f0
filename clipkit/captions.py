"""Captions: texts to token ids, and ids cut to what the batch needs."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHED = 1 << 16


class Tokenizer:
    """Texts -> ids int64 [n, context]; the same ids as the wrapped tokenizer's.

    `pad` is the id behind the end of a text; `trims` says that a tower ignores what stands there, so that columns of
    padding may be cut without changing an embedding. Repeated captions come from a cache.
    """

    def __init__(self, encode: Callable[[list[str]], Tensor], context: int, pad: int, trims: bool) -> None:
        self.encode, self.context, self.pad, self.trims = encode, context, pad, trims
        self._row = functools.lru_cache(CACHED)(self._encode_row)

    def _encode_row(self, text: str) -> np.ndarray:
        row = self.encode([text])[0].numpy()
        return row[: _used(row[None], self.pad)].astype(np.int32)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = [self._row(text) for text in texts]
        out = np.full((len(rows), self.context), self.pad, np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return torch.from_numpy(out)

    def trim(self, text: Tensor) -> Tensor:
        """The first columns of `text` [n, context] that hold all of every caption, rounded up to a multiple of 8."""
        if not self.trims or len(text) == 0:
            return text
        return text[:, : -(-_used(text.numpy(), self.pad) // 8) * 8]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_row"}  # a cache does not travel to other processes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._row = functools.lru_cache(CACHED)(self._encode_row)


def _used(text: np.ndarray, pad: int) -> int:
    """How many leading columns of `text` [n, T] hold anything but padding."""
    columns = np.flatnonzero((text != pad).any(axis=0))
    return int(columns[-1]) + 1 if len(columns) else 0


class FolderEncode:
    """Texts -> ids by the tokenizer of a local Hugging Face folder; padding is -1, which no vocabulary holds.

    A tower then sees exactly what is padding: `pad_token_id` may be missing or equal to the end of text.
    """

    def __init__(self, folder: Path, context: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        self.context = context

    def __call__(self, texts: list[str]) -> Tensor:
        out = torch.full((len(texts), self.context), -1)
        for i, ids in enumerate(self.tokenizer(texts, truncation=True, max_length=self.context)["input_ids"]):
            out[i, : len(ids)] = torch.tensor(ids)
        return out
