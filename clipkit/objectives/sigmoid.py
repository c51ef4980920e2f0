"""The sigmoid contrast of SigLIP: each of the batch's image-text combinations is a yes or a no of its own."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from clipkit.config import settings
from clipkit.objectives import _tiles
from clipkit.objectives._tiles import Combinations, Gradient, Wanted
from clipkit.types import Batch, Embeddings

EXACT = 40.0  # where softplus(x) is x: from here on exactly so in float64, from torch's own 20 on to 1e-10


@settings
class Setting:
    scale_init: Annotated[float, Field(gt=0)] = 10.0
    """First scale of the similarities (1 / temperature)."""
    bias_init: float = -10.0
    """First bias of the similarities; -10 fits batches of about 22,000, ln(1 / (batch - 1)) others."""

    def __call__(self, out: Embeddings, batch: Batch) -> Tensor:
        """The sum over the texts, mean over this rank's images, of -log sigmoid(+-(scale x.y + bias)).

        Source: arXiv 2303.15343, algorithm 1; checked against open_clip's SigLipLoss.
        """
        assert out.bias is not None, "the sigmoid objective needs a model with a bias"
        return _tiles.loss(_found, *out.pair(), out.scale, out.bias)


def _found(pairs: Combinations, wanted: Wanted) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The loss and, where wanted, its gradient, in one pass over the tiles."""
    value, gradient = pairs.image.new_zeros(()), Gradient(pairs, wanted)
    for tile in pairs.tiles():
        own = tile.own.clone()
        tile.own.fill_(-torch.inf)
        value += softplus(tile.logits, threshold=EXACT).sum() + softplus(-own, threshold=EXACT).sum()
        if any(wanted):
            tile.logits.sigmoid_()
            tile.own.copy_(-own.neg().sigmoid())
            gradient.add(tile)
    share = 1 / len(pairs.image)
    return share * value, gradient.times(share)
