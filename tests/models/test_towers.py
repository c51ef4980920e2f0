"""The towers' own forward beside open_clip's: nothing that is left out is missed."""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from torch import Tensor
from torch.nn.functional import normalize

from clipkit import models, objectives, parallel
from clipkit.distributed import Sharding
from clipkit.errors import UserError
from clipkit.models import blocks, image_tower, text_tower
from clipkit.models.blocks import Block
from clipkit.step import gradients
from clipkit.types import Batch
from tests import two_ranks

TEXTS = ["a cat", "two dogs on a red sofa", "x", "", "the quick brown fox jumps over it " * 4, "a dog"]
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
SIDE = 64


def model(folder: Path, vision: Any = None, text: Any = None, custom: bool = False) -> models.DualEncoder:
    """In float64; the same weights each time."""
    path = folder / "towers.json"
    cfg = {"embed_dim": 16, "vision_cfg": {**VISION, **(vision or {})}, "text_cfg": {**TEXT, **(text or {})}}
    path.write_text(json.dumps({**cfg, "custom_text": custom}))
    torch.manual_seed(0)
    return models.create(models.Settings(arch=str(path)), 10.0, None).double()


def pixels(rows: int = len(TEXTS), side: int = SIDE) -> Tensor:
    return torch.randn(rows, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def all_grads(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def plain(net: Any) -> Any:
    """open_clip's own model with the same weights, its blocks as open_clip made them."""
    net = copy.deepcopy(net)
    for block in (m for m in net.modules() if isinstance(m, Block)):
        block.__class__ = open_clip.transformer.ResidualAttentionBlock
    return net


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


EOS = {"pool_type": "eos", "eos_id": 49407}
KINDS = {
    "clip": ({}, {}, False, True),
    "custom text, eos, a bias": ({}, {**EOS, "proj_bias": True}, True, True),
    "layer scale, no norm before": ({"ls_init_value": 0.1, "no_ln_pre": True}, {"ls_init_value": 0.1}, False, True),
    "the average": ({"pool_type": "avg", "final_ln_after_pool": True}, {}, False, True),
    "attention pooling": (
        {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
        {},
        False,
        True,
    ),
    "a norm behind the pool": ({"final_ln_after_pool": True}, {"proj_type": "none", "width": 16}, True, True),
    "blocks of another kind": ({"qk_norm": True}, {"scale_attn": True}, True, False),
    "SigLIP's text": ({}, {"no_causal_mask": True, "pool_type": "last"}, True, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_gradients_are_open_clips(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vision, text, custom, ours = KINDS[kind]
    net = model(tmp_path, vision, text, custom)
    ids, views, weight = net.tokenizer(TEXTS), pixels(), torch.randn(2, len(TEXTS), 16, dtype=torch.float64)
    peer = plain(net.net)
    wanted = [normalize(side, dim=-1) for side in (peer.encode_image(views), peer.encode_text(ids))]
    sum((side * w).sum() for side, w in zip(wanted, weight, strict=True)).backward()
    truth = all_grads(peer)
    for packs in (True, False):  # as on a CPU and as on a GPU
        if not packs:
            monkeypatch.setattr(text_tower, "_may_pack", lambda tower, text: False)
        net.zero_grad()
        out = net(views, ids if packs else net.tokenizer.trim(ids)).pair()
        for side, want in zip(out, wanted, strict=True):
            close(side, want)
        sum((side * w).sum() for side, w in zip(out, weight, strict=True)).backward()
        assert all_grads(net.net).keys() == truth.keys()
        for name, grad in all_grads(net.net).items():
            close(grad, truth[name])
    assert any(isinstance(m, Block) for m in net.net.visual.modules()) == (ours is not False)
    assert peer.state_dict().keys() == net.net.state_dict().keys()


@pytest.mark.skipif(not blocks.BY_ONEDNN, reason="torch was built without oneDNN")
@pytest.mark.parametrize("quick", [False, True])
def test_products_by_onednn_are_those_that_torch_makes(
    tmp_path: Path, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model(tmp_path).float()
    for block in net.net.visual.transformer.resblocks:
        block.mlp.gelu = open_clip.transformer.QuickGELU() if quick else block.mlp.gelu
    found = []
    for on in (True, False):
        monkeypatch.setattr(blocks, "BY_ONEDNN", on)
        with torch.inference_mode(), torch.profiler.profile() as told:
            found.append(net(pixels().float(), net.tokenizer(TEXTS)).pair())
        assert any("_linear_pointwise" in event.key for event in told.key_averages()) == on
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_the_last_block_computes_the_tokens_that_are_looked_at(tmp_path: Path) -> None:
    net = model(tmp_path)
    seen: list[torch.Size] = []
    for transformer in (net.net.visual.transformer, net.net.transformer):
        for block in transformer.resblocks:
            block.mlp.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    ids = net.tokenizer(TEXTS)
    net(pixels(), ids)
    tokens, rows = int((ids != 0).sum()), len(TEXTS)
    assert seen == [(rows, 17, 32), (rows, 32), (tokens, 16), (rows, 16)]


def test_no_texts_and_one_text_are_batches_too(tmp_path: Path) -> None:
    net = model(tmp_path)
    ids = net.tokenizer(TEXTS)
    assert net(text=ids[:0]).text.shape == (0, 16) and net(pixels(0)).image.shape == (0, 16)
    close(net(text=ids[:1]).text, net(text=ids).text[:1])


@pytest.mark.parametrize("side", [32, 96])
def test_pictures_of_another_side_meet_the_positions_that_open_clip_would_resize_to(tmp_path: Path, side: int) -> None:
    net, other = model(tmp_path), model(tmp_path, {"image_size": side})
    state = net.net.state_dict()
    resize_pos_embed(state, other.net)
    other.net.load_state_dict(state)
    close(net(pixels(side=side)).image, normalize(plain(other.net).encode_image(pixels(side=side)), dim=-1))
    net(pixels(side=side)).image.sum().backward()
    grad = net.net.visual.positional_embedding.grad
    assert grad is not None and (grad != 0).any(1).all()


def test_patches_are_dropped_in_training_alone_and_a_cached_step_drops_the_same(tmp_path: Path) -> None:
    net = model(tmp_path)
    seen: list[int] = []
    net.net.visual.ln_pre.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    whole = net(pixels()).image
    for dropout in (0.0, 0.5, 0.99):
        net.patch_dropout = dropout
        out = net(pixels()).image
        assert torch.equal(out, whole) == (dropout == 0)
        assert torch.equal(net.eval()(pixels()).image, whole) or net.train() is None
        net.train()
    assert seen == [17, 17, 17, 9, 17, 2, 17]
    net.patch_dropout = 0.5
    x = torch.arange(160, dtype=torch.float64).reshape(2, 16, 5)
    kept = image_tower._some(x, 0.5)
    assert kept.shape == (2, 8, 5) and not torch.equal(kept[0] + 80, kept[1])
    assert all(len(set(map(tuple, row.tolist())) & set(map(tuple, x[i].tolist()))) == 8 for i, row in enumerate(kept))
    one, two = (copy.deepcopy(net) for _ in range(2))
    torch.manual_seed(5)
    parts = [one(pixels()[i : i + 2], one.tokenizer(TEXTS[i : i + 2])) for i in (0, 2, 4)]
    batch = Batch(pixels(), net.tokenizer(TEXTS), torch.arange(6), [""] * 6)
    sides = [torch.cat(side) for side in zip(*(part.pair() for part in parts), strict=True)]
    objective = objectives.build({"name": "softmax"})
    objective(parts[0]._replace(image=sides[0], text=sides[1]), batch).backward()
    torch.manual_seed(5)
    gradients(two, objective, batch, 2)
    for name, grad in all_grads(one).items():
        close(all_grads(two)[name], grad)


def test_the_architectures_own_patch_dropout_stays_where_nothing_else_is_said(tmp_path: Path) -> None:
    net = model(tmp_path, {"patch_dropout": 0.5})
    seen: list[int] = []
    net.net.visual.ln_pre.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    net(pixels())
    net.patch_dropout = 0.0
    net(pixels())
    net.eval()(pixels())
    assert seen == [9, 17, 17]


def stepped(net: Any, chunk: int | None, rows: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients) of the batch, or of a rank's rows of it."""
    inner = getattr(net, "module", net)
    ids = inner.tokenizer(TEXTS)
    batch = Batch(pixels()[rows], ids[rows], torch.arange(6)[rows], [""] * 6)
    loss = gradients(net, objectives.build({"name": "softmax"}), batch, chunk)
    return loss, {name: parallel.full(grad) for name, grad in all_grads(inner).items()}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler asks for it
def test_compiled_recomputed_and_chunked_equal_plain(tmp_path: Path) -> None:
    loss, truth = stepped(model(tmp_path), None)
    for compile, checkpointing, chunk in ((False, True, None), (True, True, 2)):
        net = model(tmp_path)
        models.speed_up(net, compile, checkpointing, backend="aot_eager")
        assert net.state_dict().keys() == model(tmp_path).state_dict().keys()
        got, found = stepped(net, chunk)
        close(got, loss)
        for name, grad in truth.items():
            close(found[name], grad)


def test_what_is_recomputed_is_not_kept(tmp_path: Path) -> None:
    held = []
    for checkpointing in (False, True):
        net, sizes = model(tmp_path), []
        models.speed_up(net, False, checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            net(pixels(), net.tokenizer(TEXTS))
        held.append(sum(sizes))
    assert held[1] < held[0] / 2, held


def test_a_tower_that_cannot_be_recomputed_is_told(tmp_path: Path) -> None:
    net = model(tmp_path, {"layers": [1, 1, 1, 1]})
    with pytest.raises(UserError, match=r"checkpointing: the image tower of model.arch=.* set checkpointing=false"):
        models.speed_up(net, False, True)
    assert net.patch is None and net(pixels(2)).image.shape == (2, 16)


def spread(rank: int, folder: str) -> list[Any]:
    found = []
    for sharding, compile, checkpointing in ((None, False, True), (Sharding(), False, True), (Sharding(), True, True)):
        net = model(Path(folder) / str(rank))
        models.speed_up(net, compile, checkpointing, backend="eager")
        wrapped = parallel.wrap(net, sharding)
        found.append(stepped(wrapped, 2, slice(3 * rank, 3 * rank + 3)))
    return found


def test_ranks_that_hold_copies_or_shares_equal_one_process(tmp_path: Path) -> None:
    loss, truth = stepped(model(tmp_path), None)
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    for ranks in zip(*two_ranks.run(spread, str(tmp_path)), strict=True):
        close(torch.stack([one[0] for one in ranks]).mean(), loss)
        for _, found in ranks:
            for name, grad in truth.items():
                close(found[name], grad)
