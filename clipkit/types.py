"""The things that cross from one part of clipkit to another."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Embeddings(NamedTuple):
    """What a dual encoder gives for the pairs of this rank: float32, rows of unit length.

    image [B, D] and text [B, D] (None where that side was not asked for), scale [] (the factor, not its log),
    bias [] (None where the objective has none).
    """

    image: Tensor | None
    text: Tensor | None
    scale: Tensor
    bias: Tensor | None

    def pair(self) -> tuple[Tensor, Tensor]:
        """Both sides; a caller that needs both gets an assertion instead of a None."""
        assert self.image is not None and self.text is not None, "embeddings of images and texts are needed"
        return self.image, self.text


class Bad(NamedTuple):
    """A sample that could not be read and was replaced: its source, its shard and key, and why."""

    source: str
    sample: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """The pairs of this rank for one step: images uint8 [B, 3, H, W], text int64 [B, T], position int64 [B] in the
    run's order, keys of the samples, and the unreadable samples that others stand in for."""

    images: Tensor
    text: Tensor
    position: Tensor
    keys: list[str]
    replaced: list[Bad] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, start: int, end: int) -> "Batch":
        """Pairs start..end-1, as a view."""
        return Batch(self.images[start:end], self.text[start:end], self.position[start:end], self.keys[start:end])

    def pin_memory(self) -> "Batch":
        """The same batch in memory that a GPU reads directly; the data loader's pinning thread calls this."""
        return Batch(
            self.images.pin_memory(), self.text.pin_memory(), self.position.pin_memory(), self.keys, self.replaced
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        tensors = [x.to(device, non_blocking=True) for x in (self.images, self.text, self.position)]
        return Batch(tensors[0], tensors[1], tensors[2], self.keys, self.replaced)


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a model's input: square side in pixels, channel mean and deviation of 0..1 values."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"
    fill: int = 0
