"""The sigmoid contrast of SigLIP: each of the batch's image-text combinations is a yes or a no of its own."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from clipkit import distributed
from clipkit.config import settings
from clipkit.types import Batch, Embeddings


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
        image, text = out.pair()
        assert out.bias is not None, "the sigmoid objective needs a model with a bias"
        logits = out.scale * image @ distributed.gather(text).T + out.bias
        first = distributed.rank() * len(image)
        own = torch.arange(len(image), device=image.device)
        sign = -torch.ones_like(logits)
        sign[own, first + own] = 1
        return -logsigmoid(sign * logits).sum() / len(image)
