"""The softmax contrast of CLIP: each image finds its text among all of the batch, and each text its image."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipkit import distributed
from clipkit.config import settings
from clipkit.objectives import _tiles
from clipkit.objectives._tiles import Combinations, Gradient, Tile, Wanted
from clipkit.types import Batch, Embeddings

NONE = -1e30  # less than any logit, yet finite, so that its difference to another is a number
SMALL = 60.0  # logits of which a million exponentials and their inverse stay within float32


@settings
class Setting:
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each target spread evenly over the whole batch."""
    scale_init: Annotated[float, Field(gt=0)] = 1 / 0.07
    """First scale of the similarities (1 / temperature)."""

    @property
    def bias_init(self) -> None:
        """This objective has no bias."""
        return

    def __call__(self, out: Embeddings, batch: Batch) -> Tensor:
        """The mean of both directions' cross-entropies over this rank's pairs.

        Source: arXiv 2103.00020, figure 3; checked against open_clip's ClipLoss (local_loss and gather_with_grad).
        """
        return _tiles.loss(self._found, *out.pair(), out.scale)

    def _found(self, pairs: Combinations, wanted: Wanted) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The loss and, where wanted, its gradient, in two passes over the tiles.

        The cross-entropy of a row is softplus(odds), odds the log of what the others weigh against the true one. So
        the true one is never summed with the others nor subtracted again: in float32 that would leave nothing of a
        small loss. A maximum and the log of a sum relative to it are kept apart for the same reason.
        """
        small = _small(pairs)
        kept: dict[int, Tensor] | None = {} if any(wanted) else None
        images, texts = _weigh(pairs, small, kept)
        odds = torch.stack([images.odds(), texts.odds()[pairs.mine]])  # [2, B]
        value = torch.logaddexp(odds, odds.new_zeros(())).sum()
        spread = self.label_smoothing / len(pairs.texts)
        if spread:
            value += 2 * self.label_smoothing * images.own.sum() - spread * _sum_of_logits(pairs)
        gradient = Gradient(pairs, wanted)
        if any(wanted):
            slopes = 2 * self.label_smoothing - odds.sigmoid().sum(0)  # at the true logits, of both directions
            images.close()
            texts.close()
            for tile in pairs.tiles(kept):
                _to_softmax(tile, images, texts, small)
                tile.own.copy_(slopes[tile.pairs])
                gradient.add(tile)
            if spread:
                gradient.add_everywhere(-2 * spread)
        half = 1 / (2 * len(pairs.image))
        return half * value, gradient.times(half)


def _small(pairs: Combinations) -> bool:
    """Is no logit beyond what `exp` takes as it is? Then one exponential serves both directions, and no maximum is
    needed: 8 % of the time of a large batch on a CPU. On a GPU the host would wait for the answer."""
    if pairs.image.is_cuda:
        return False
    longest = pairs.image.norm(dim=1).amax() * pairs.texts.norm(dim=1).amax()
    return bool(pairs.scale.abs() * longest < SMALL)


def _weigh(pairs: Combinations, small: bool, kept: dict[int, Tensor] | None) -> tuple["_Sums", "_Sums"]:
    """What is known of each of this rank's images, and of each text of all ranks, after a pass over the tiles."""
    images, texts = _Sums(pairs.image, 1), _Sums(pairs.texts, 0)
    for tile in pairs.tiles(kept):
        images.own[tile.pairs] = tile.own
        tile.own.fill_(-torch.inf)
        if small:
            tile.logits.exp_()
            images.sum[tile.rows] += tile.logits.sum(1)
            texts.sum[tile.cols] += tile.logits.sum(0)
        else:
            images.add(tile.logits, tile.rows)
            texts.add(tile.logits, tile.cols)
    if small:
        images.part()
        texts.part()
    texts.own[pairs.mine] = images.own
    texts.merge()
    return images, texts


def _to_softmax(tile: Tile, images: "_Sums", texts: "_Sums", small: bool) -> None:
    """Overwrite the logits of a tile by the sum of both directions' softmax; the true pairs' come out as anything."""
    if small:
        if not tile.again:
            tile.logits.exp_()
        tile.logits.mul_(images.shares(tile.rows) + texts.shares(tile.cols))
    else:
        torch.add(images.softmax(tile.logits, tile.rows), texts.softmax(tile.logits, tile.cols), out=tile.logits)


class _Sums:
    """Of each row (dim 1) or column (dim 0) of the logits: the true one `own`, the most of the others, and the sum of
    exp(other - most)."""

    def __init__(self, of: Tensor, dim: int) -> None:
        self.dim = dim
        self.own, self.most = of.new_full((2, len(of)), NONE)
        self.sum = of.new_zeros(len(of))

    def add(self, logits: Tensor, where: slice) -> None:
        """Count the logits of a tile, in which the true ones are -inf."""
        most = torch.maximum(self.most[where], logits.amax(self.dim))
        found = (logits - most.unsqueeze(self.dim)).exp_().sum(self.dim)
        self.sum[where] = self.sum[where] * (self.most[where] - most).exp() + found
        self.most[where] = most

    def part(self) -> None:
        """Part the sums of small logits' exponentials into a whole number for the most, and the rest."""
        self.most = self.sum.log().floor().clamp_min(-SMALL)
        self.sum *= self.most.neg().exp()

    def merge(self) -> None:
        """Count what the other ranks found in the same columns; the true ones come from the ranks that have them."""
        most, self.own = distributed.largest(torch.stack([self.most, self.own]))
        self.sum = distributed.total(self.sum * (self.most - most).exp())
        self.most = most

    def odds(self) -> Tensor:
        """The log of what the others weigh against the true one; -inf where there are no others."""
        return self.most - self.own + self.sum.log()

    def close(self) -> None:
        """Count the true one among the others."""
        most = torch.maximum(self.most, self.own)
        self.sum = self.sum * (self.most - most).exp() + (self.own - most).exp()
        self.most = most

    def shares(self, where: slice) -> Tensor:
        """What the exponentials of small logits are to be multiplied with for their softmax."""
        return (self.most[where].neg().exp() / self.sum[where]).unsqueeze(self.dim)

    def softmax(self, logits: Tensor, where: slice) -> Tensor:
        """The softmax, over the whole row or column, of the logits of a tile."""
        shares = (logits - self.most[where].unsqueeze(self.dim)).exp_()
        return shares.div_(self.sum[where].unsqueeze(self.dim))


def _sum_of_logits(pairs: Combinations) -> Tensor:
    """The sum of this rank's rows of logits and of its columns."""
    rows = pairs.image.sum(0) @ pairs.texts.sum(0)
    return pairs.scale * (rows + pairs.texts[pairs.mine].sum(0) @ distributed.total(pairs.image.sum(0)))
