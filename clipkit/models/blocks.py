"""open_clip's residual attention blocks, computed for no more tokens than are looked at.

Imported when a model is made: open_clip takes seconds.
"""

from typing import Any, NamedTuple

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

Spans = tuple[tuple[int, int], ...]
BY_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Plan(NamedTuple):
    """What a block computes of tokens x [B, T, D], or of texts without padding, x [N, D].

    `spans` (rows, length) of the latter: groups of texts of one length, one group after another. In a `causal` tower a
    token sees none behind it. `keep` int64 [B], where only these tokens (rows of x as [tokens, D]) are wanted: the
    result is then [B, D], and `seen` bool [B, 1, 1, T] tells what each of them may see (None: all of its row).
    """

    spans: Spans | None = None
    causal: bool = False
    keep: Tensor | None = None
    seen: Tensor | None = None


class Block(ResidualAttentionBlock):
    """The block with the same weights; with a `plan` it is faster, without one it is as it was.

    Queries, the projection behind attention and the MLP are computed for the tokens that are kept alone.
    """

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
        plan: Plan | None = None,
    ) -> Tensor:
        """As open_clip's, or as `plan` says."""
        if plan is None:
            return super().forward(q_x, k_x, v_x, attn_mask)
        x, seen = q_x, self.ln_1(q_x)
        weight, bias, width = self.attn.in_proj_weight, self.attn.in_proj_bias, q_x.shape[-1]
        if plan.keep is None:
            q, k, v = _linear(seen, weight, bias).chunk(3, dim=-1)
        else:
            k, v = _linear(seen, weight[width:], bias[width:]).chunk(2, dim=-1)
            x = x.flatten(0, -2).index_select(0, plan.keep)
            q = _linear(seen.flatten(0, -2).index_select(0, plan.keep), weight[:width], bias[:width])
        x = x + self.ls_1(_layer(self.attn.out_proj, _attention(q, k, v, self.attn.num_heads, plan)))
        return x + self.ls_2(_mlp(self.mlp, self.ln_2(x)))


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    if not _by_onednn(x):
        return mlp(x)
    if type(mlp.gelu) is nn.GELU and mlp.gelu.approximate == "none":
        return _layer(mlp.c_proj, _layer(mlp.c_fc, x, gelu=True))
    return _layer(mlp.c_proj, mlp.gelu(_layer(mlp.c_fc, x)))


def _layer(layer: nn.Module, x: Tensor, gelu: bool = False) -> Tensor:
    """A linear layer, or what has taken its place; and a GELU."""
    if _by_onednn(x) and isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        return _linear(x, layer.weight, layer.bias, gelu)
    return nn.functional.gelu(layer(x)) if gelu else layer(x)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    if not _by_onednn(x):
        return linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


def _by_onednn(x: Tensor) -> bool:
    """For inference in float32 on a CPU oneDNN is a tenth faster than what torch takes for products (LOG.md)."""
    return BY_ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and torch.is_inference_mode_enabled()


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, plan: Plan) -> Tensor:
    """Attention within each row; its result has the shape of `q`."""
    if plan.spans is None:
        return _attend(q if plan.keep is None else q.unsqueeze(1), k, v, heads, plan).reshape(q.shape)
    tokens = [rows * length for rows, length in plan.spans]
    asked = q.split(tokens if plan.keep is None else [rows for rows, _ in plan.spans])
    out = []
    for (rows, _), *group in zip(plan.spans, asked, k.split(tokens), v.split(tokens), strict=True):
        one, over, of = (x.unflatten(0, (rows, -1)) for x in group)
        out.append(_attend(one, over, of, heads, plan).flatten(0, 1))
    return torch.cat(out)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, plan: Plan) -> Tensor:
    """q [n, t, D] over k, v [n, T, D] -> [n, t, D]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    causal = plan.causal and plan.keep is None
    return scaled_dot_product_attention(q, k, v, attn_mask=plan.seen, is_causal=causal).transpose(1, 2).flatten(2)


def adopt(transformer: Any) -> None:
    """Let the blocks of an open_clip transformer take a plan, if all are of the one kind that `Block` is equal to.

    Their class is changed in place: weights, names and hooks stay.
    """
    if all(map(_is_plain, transformer.resblocks)):
        for block in transformer.resblocks:
            block.__class__ = Block


def take_plan(transformer: Any) -> bool:
    """Whether `adopt` found all of its blocks to be known."""
    return len(transformer.resblocks) > 0 and isinstance(transformer.resblocks[0], Block)


def _is_plain(block: nn.Module) -> bool:
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attention = block.attn
    return (
        type(attention) is nn.MultiheadAttention
        and attention.batch_first
        and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and attention.dropout == 0
    )


def run(transformer: Any, x: Tensor, plan: Plan, keep: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
    """`x` through the blocks of an adopted transformer; with `keep` (and `seen`), the last computes those alone.

    A transformer with `grad_checkpointing` computes each block again in backward instead of keeping what is in it.
    """
    final = plan._replace(keep=keep, seen=seen)
    for block in transformer.resblocks:
        now = final if block is transformer.resblocks[-1] else plan
        if transformer.grad_checkpointing:  # nothing in such a block is random
            x = checkpoint(block, x, plan=now, use_reentrant=False, preserve_rng_state=False)  # type: ignore[assignment]
        else:
            x = block(x, plan=now)
    return x
