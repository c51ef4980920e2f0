"""The text tower's forward: no padding is computed, and the last block for the end of text alone."""

from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn
from torch.nn.functional import embedding

from clipkit.models import blocks
from clipkit.models.blocks import Plan


def adopt(net: Any) -> bool:
    """Whether `read` can stand in for the text tower of an open_clip model: a causal transformer that pools at the end
    of text, so that no token behind it matters. Its blocks then take a plan where they are of a known kind."""
    if type(net) is CLIP:
        tower, plain = net, True
    else:
        tower = getattr(net, "text", None)
        plain = type(net) is CustomTextCLIP and type(tower) is TextTransformer
        plain = plain and tower.cls_emb is None and not tower.output_tokens  # type: ignore[union-attr]
    if not plain or tower.attn_mask is None or _pool(tower) not in ("argmax", "eos"):  # type: ignore[union-attr]
        return False
    blocks.adopt(tower.transformer)  # type: ignore[union-attr]
    return True


def read(net: Any, text: Tensor) -> Tensor:
    """What `net.encode_text` gives for `text` int64 [B, T] with T up to the context.

    On the CPU texts are packed: those of one length lie together and nothing is padded. On a GPU that would wait for
    the lengths, and compiled blocks would never see the same shapes twice: there all columns are computed.
    """
    tower = getattr(net, "text", net)
    end = _end(tower, text)
    if not blocks.take_plan(tower.transformer):
        x = _by_mask(tower, text, end)
    elif _may_pack(tower, text):
        x = _packed(tower, text, end)
    else:
        x = _padded(tower, text, end)
    x, projection = tower.ln_final(x), tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _may_pack(tower: Any, text: Tensor) -> bool:
    compiled = tower.transformer.resblocks[0]._compiled_call_impl is not None
    real = type(text) is Tensor  # a fake tensor has no lengths
    return text.device.type == "cpu" and real and not compiled and len(text) > 0


def _packed(tower: Any, text: Tensor, end: Tensor) -> Tensor:
    """States [B, D] at the end of each text, from its own tokens alone."""
    order = end.argsort(stable=True)
    lengths = end[order] + 1
    tokens = torch.arange(text.shape[1]).expand(text.shape)
    real = tokens < lengths[:, None]
    counts = lengths.bincount().tolist()
    spans = tuple((count, length) for length, count in enumerate(counts) if count)
    x = _words(tower, text[order][real], embedding(tokens[real], tower.positional_embedding))
    x = blocks.run(tower.transformer, x, Plan(spans, causal=True), lengths.cumsum(0) - 1)
    return x.index_select(0, order.argsort())


def _padded(tower: Any, text: Tensor, end: Tensor) -> Tensor:
    """States [B, D] at the end of each text, with what stands behind it computed in all blocks but the last."""
    columns = torch.arange(text.shape[1], device=text.device)
    keep = torch.arange(len(text), device=text.device) * text.shape[1] + end
    seen = (columns <= end[:, None])[:, None, None]
    x = _words(tower, text, tower.positional_embedding[: text.shape[1]])
    return blocks.run(tower.transformer, x, Plan(causal=True), keep, seen)


def _by_mask(tower: Any, text: Tensor, end: Tensor) -> Tensor:
    """States [B, D] at the end of each text by blocks of open_clip that take no plan."""
    length = text.shape[1]
    x = _words(tower, text, tower.positional_embedding[:length])
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    return x[torch.arange(len(text), device=text.device), end]


def _words(tower: Any, text: Tensor, position: Tensor) -> Tensor:
    dtype = tower.transformer.get_cast_dtype()
    return tower.token_embedding(text).to(dtype) + position.to(dtype)


def _end(tower: Any, text: Tensor) -> Tensor:
    """Where each text ends, int64 [B], as open_clip finds it."""
    columns = torch.arange(text.shape[1], device=text.device).expand(text.shape)
    eos = getattr(tower, "text_eos_id", None) if isinstance(tower, CLIP) else tower.eos_id
    return text_global_pool(columns, text, _pool(tower), eos_token_id=eos)


def _pool(tower: Any) -> Any:
    return tower.text_pool_type if isinstance(tower, CLIP) else tower.pool_type
