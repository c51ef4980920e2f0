"""The softmax contrast of CLIP: each image finds its text among all of the batch, and each text its image."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipkit import distributed
from clipkit.config import settings
from clipkit.types import Batch, Embeddings


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
        image, text = out.pair()
        target = torch.arange(len(image), device=image.device) + distributed.rank() * len(image)
        if distributed.world() == 1:  # one matrix serves both directions: 3 products where two matrices take 6
            by_image = out.scale * image @ text.T
            by_text = by_image.T
        else:
            by_image = out.scale * image @ distributed.gather(text).T
            by_text = out.scale * text @ distributed.gather(image).T
        first, second = (cross_entropy(x, target, label_smoothing=self.label_smoothing) for x in (by_image, by_text))
        return (first + second) / 2
