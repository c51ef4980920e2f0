"""The dual encoder: one call, pictures and texts in, `Embeddings` out."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clipkit import images
from clipkit.captions import Tokenizer
from clipkit.types import Embeddings, Preprocess

SCALE_BOUNDS = (1.0, 100.0)


class DualEncoder(nn.Module):
    """`net` (an open_clip model) with what it takes to feed it: `shape` for pictures, `tokenizer` for texts.

    Both towers, the scale and the bias are used inside one `forward`, so that a wrapper such as DDP sees them all.
    Precision has one owner, this class: towers run in `dtype`, embeddings leave in float32. `spec` is what model.yaml
    keeps, and `text_folder` the Hugging Face folder of the text tower, if it has one.
    """

    net: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, spec: dict[str, Any], shape: Preprocess, tokenizer: Tokenizer, text_folder: Path | None
    ) -> None:
        super().__init__()
        self.net, self.spec, self.shape, self.tokenizer, self.text_folder = net, spec, shape, tokenizer, text_folder
        self.dtype = torch.float32
        self.register_buffer("mean", torch.tensor(shape.mean), persistent=False)
        self.register_buffer("std", torch.tensor(shape.std), persistent=False)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Embeddings:
        """image uint8 [B, 3, H, W] (or normalised floats), text int64 [B, T] with T up to the context length."""
        device = self.net.logit_scale.device
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype == torch.bfloat16):
            seen = None if image is None else self.net.encode_image(self._pixels(image))
            read = None if text is None else self._read(text)
        scale = self.net.logit_scale.exp().reshape(())
        bias = None if self.net.logit_bias is None else self.net.logit_bias.reshape(())
        return Embeddings(_unit(seen), _unit(read), scale, bias)

    def _pixels(self, image: Tensor) -> Tensor:
        return images.normalize(image, self.mean, self.std) if image.dtype == torch.uint8 else image

    def _read(self, text: Tensor) -> Tensor:
        cut = self.tokenizer.trims and text.shape[1] < self.tokenizer.context and self.text_folder is None
        return _causal_text(self.net, text) if cut else self.net.encode_text(text)

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale within 1 and 100, as every CLIP recipe does after each step."""
        low, high = SCALE_BOUNDS
        self.net.logit_scale.clamp_(math.log(low), math.log(high))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.net.logit_scale.device


def _unit(x: Tensor | None) -> Tensor | None:
    if x is None:
        return None
    return normalize(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x, dim=-1)


def _causal_text(net: Any, text: Tensor) -> Tensor:
    """What `net.encode_text` gives for `text` [B, T] padded to the full context, computed on its T columns alone.

    open_clip adds all positions and the whole mask, so a shorter text needs the first T of both. In a causal tower that
    pools at the end of text nothing looks at the padding behind it: the result is the same to rounding (tested).
    """
    from open_clip.transformer import text_global_pool

    tower = getattr(net, "text", net)
    length = text.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(text).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    pool = tower.text_pool_type if tower is net else tower.pool_type
    eos = tower.text_eos_id if tower is net else tower.eos_id
    x = text_global_pool(x, text, pool, eos_token_id=eos)
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection
