"""All image-text combinations of the global batch, a square tile at a time: what softmax and sigmoid are made of.

The matrix of logits [B, N] (this rank's images, all ranks' texts) is never whole: memory is that of the embeddings, of
a few tiles and of KEPT_MB. One product gives a tile of logits, which serves both directions; two more bring the loss's
derivative at the logits home to images and texts. The gradient is worked out together with the loss, while the tile is
at hand, and backward only weighs it: a loss of which no gradient is asked costs the first product alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit import distributed

SIDE = 1024  # of a tile: 4 MB of float32 stay in a CPU's cache between a product and what is done to it
CUDA_SIDE = 4096  # fewer launches
KEPT_MB = 96  # of logits that a second pass needs again: all of a batch of 5,000, 9 % of one of 16,000 ...
KEPT = 3  # ... and no more than so many times the embeddings' own memory, which is what a chunked step has room for


class Wanted(NamedTuple):
    """Which inputs of a loss need a gradient."""

    image: bool
    text: bool
    scale: bool
    bias: bool


class Tile(NamedTuple):
    """logits [t, c] of the images `rows` and the texts `cols`; own: the view of those of true pairs in it (often none),
    which are the pairs `pairs` of this rank; again: the logits are as they were left in the first pass."""

    rows: slice
    cols: slice
    logits: Tensor
    own: Tensor
    pairs: slice
    again: bool


@dataclass(frozen=True)
class Combinations:
    """This rank's images [B, D] with all ranks' texts [N, D], of which rows first.. are this rank's."""

    image: Tensor
    texts: Tensor
    scale: Tensor
    bias: Tensor | None
    first: int

    @property
    def mine(self) -> slice:
        """Where this rank's own texts are."""
        return slice(self.first, self.first + len(self.image))

    def tiles(self, kept: dict[int, Tensor] | None = None) -> Iterator[Tile]:
        """Every combination once; the memory of a tile, which may be written to, is soon that of another.

        The first pass puts logits into `kept`, as many as there is room for, and the second takes them from there.
        """
        side = CUDA_SIDE if self.image.is_cuda else SIDE
        rows, cols = _even(len(self.image), side), _even(len(self.texts), side)
        largest = _size(rows[-1]) * _size(cols[-1])
        most = min(int(KEPT_MB * 1e6), KEPT * (self.image.nbytes + self.texts.nbytes))
        room = 0 if kept is None else most // (largest * self.image.itemsize)
        kept, space = {} if kept is None else kept, self.image.new_empty(largest)
        for i, (row, col) in enumerate(product(rows, cols)):
            logits = kept.pop(i, None)
            again = logits is not None
            if logits is None:
                shape = (_size(row), _size(col))
                logits = self.image.new_empty(shape) if i < room else space[: math.prod(shape)].view(shape)
                torch.mm(self.image[row] * self.scale, self.texts[col].T, out=logits)
                if self.bias is not None:
                    logits += self.bias
                if i < room:
                    kept[i] = logits
            ahead = self.first + row.start - col.start
            own = logits.diagonal(ahead)
            start = row.start + max(0, -ahead)
            yield Tile(row, col, logits, own, slice(start, start + len(own)), again)


def _even(n: int, side: int) -> list[slice]:
    """0..n-1 in parts of at most `side`, none larger than the last."""
    parts = -(-n // side)
    return [slice(i * n // parts, (i + 1) * n // parts) for i in range(parts)]


def _size(part: slice) -> int:
    return part.stop - part.start


class Gradient:
    """The gradient at a loss's inputs, added up from the derivatives at the logits."""

    def __init__(self, of: Combinations, wanted: Wanted) -> None:
        self.of, self.wanted = of, wanted
        self.image = torch.zeros_like(of.image) if wanted.image or wanted.scale else None
        self.texts = torch.zeros_like(of.texts) if wanted.text else None
        self.bias = of.image.new_zeros(())

    def add(self, tile: Tile) -> None:
        """Add what a tile gives, whose logits have been overwritten by the loss's derivatives there."""
        if self.image is not None:
            self.image[tile.rows].addmm_(tile.logits, self.of.texts[tile.cols])
        if self.texts is not None:
            self.texts[tile.cols].addmm_(tile.logits.T, self.of.image[tile.rows])
        if self.wanted.bias:
            self.bias += tile.logits.sum()

    def add_everywhere(self, slope: float) -> None:
        """Add what one derivative at all logits gives."""
        if self.image is not None:
            self.image += slope * self.of.texts.sum(0)
        if self.texts is not None:
            self.texts += slope * self.of.image.sum(0)

    def times(self, factor: float) -> tuple[Tensor | None, ...]:
        """`factor` times the gradient at image, text, scale and bias. This rank's texts get what all ranks found."""
        image = text = scale = None
        if self.image is not None:
            scale = factor * (self.image * self.of.image).sum()
            image = self.image.mul_(factor * self.of.scale)
        if self.texts is not None:
            text = distributed.scatter_sum(self.texts.mul_(factor * self.of.scale))
        found = (image, text, scale, factor * self.bias)
        return tuple(x if wanted else None for x, wanted in zip(found, self.wanted, strict=True))


Work = Callable[[Combinations, Wanted], tuple[Tensor, tuple[Tensor | None, ...]]]


def loss(work: Work, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The loss [] that `work` finds, together with its gradient where one is wanted.

    All ranks must weigh their losses alike: what a text gets from the other ranks' images is summed in forward.
    """
    inputs = (image, text, scale, bias)
    wanted = Wanted(*(torch.is_grad_enabled() and x is not None and x.requires_grad for x in inputs))
    return _WithGradient.apply(work, wanted, *inputs)  # type: ignore[return-value]


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, work: Work, wanted: Wanted, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        first = distributed.rank() * len(image)
        value, gradient = work(Combinations(image, distributed.gather(text), scale, bias, first), wanted)
        ctx.save_for_backward(*gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(None if x is None else x * weight for x in ctx.saved_tensors)
