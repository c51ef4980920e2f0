"""The image tower's forward: pictures of any side, fewer patches where they are dropped, a last block for one token."""

from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from clipkit.models import blocks


def adopt(net: Any) -> int | None:
    """The side in pixels of a patch where `see` can stand in for the image tower of an open_clip model, a ViT; its
    blocks then take a plan where they are of a known kind."""
    visual = getattr(net, "visual", None)
    if type(net) not in (CLIP, CustomTextCLIP) or type(visual) is not VisionTransformer or visual.output_tokens:
        return None
    blocks.adopt(visual.transformer)
    down, across = visual.patch_size
    return down if down == across else None


def see(visual: Any, pixels: Tensor, dropout: float | None = None) -> Tensor:
    """What `visual` gives for normalised pixels [B, 3, H, W], with a share of the patches dropped in training; null
    does what the tower was made with.

    Positions are resized where the pictures are not of the tower's own side, as open_clip does for a checkpoint.
    """
    x = visual.conv1(pixels)
    position = positions(visual, (x.shape[2], x.shape[3])).to(x.dtype)
    x = x.flatten(2).transpose(1, 2) + position[1:]
    if dropout is None:
        dropout = getattr(visual.patch_dropout, "prob", 0.0)
    if dropout and visual.training:
        x = _some(x, dropout)
    first = (visual.class_embedding.to(x.dtype) + position[0]).expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1)
    x = visual.ln_pre(x)
    known = blocks.take_plan(visual.transformer)
    if known and visual.attn_pool is None and visual.pool_type == "tok":
        first = torch.arange(len(x), device=x.device) * x.shape[1]
        pooled = visual.ln_post(blocks.run(visual.transformer, x, blocks.Plan(), first))
    else:
        x = blocks.run(visual.transformer, x, blocks.Plan()) if known else visual.transformer(x)
        pooled, _ = visual._pool(x)
    return pooled if visual.proj is None else pooled @ visual.proj


def positions(visual: Any, grid: tuple[int, int]) -> Tensor:
    """The tower's positions for a `grid` of patches (down, across), [1 + patches, width], the class token's first.

    Source: open_clip's resize_pos_embed.
    """
    known, own = visual.positional_embedding, visual.grid_size
    if grid == tuple(own):
        return known
    patches = known[1:].unflatten(0, own).permute(2, 0, 1)[None]
    patches = interpolate(patches, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([known[:1], patches[0].flatten(1).T])


def _some(x: Tensor, dropout: float) -> Tensor:
    """Of the patches [B, n, D] of each picture, a random 1 - dropout of them, at least one.

    Source: FLIP, arXiv 2212.00794.
    """
    kept = max(1, int(x.shape[1] * (1 - dropout)))
    chosen = torch.rand(x.shape[:2], device=x.device).topk(kept, dim=1, sorted=False).indices
    return x.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[2]))
