"""The mathematics is open_clip's: same weights and batches give the same loss, gradients and steps."""

import copy
import math
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn.functional import normalize

from clipkit import models, objectives, optim, step
from clipkit.types import Batch, Embeddings
from tests import two_ranks

PEERS = {"softmax": ClipLoss(), "sigmoid": SigLipLoss()}


def five_batches(model: models.DualEncoder) -> list[Batch]:
    dice = torch.Generator().manual_seed(3)
    words = ["cat", "dog", "red", "a photo of a bird", "the blue house on the hill", "x"]
    batches = []
    for i in range(5):
        pixels = torch.randint(0, 256, (6, 3, 64, 64), generator=dice, dtype=torch.uint8)
        text = model.tokenizer([f"{word} {i}" for word in words])
        batches.append(Batch(pixels, text, torch.arange(6), [""] * 6))
    return batches


@pytest.mark.parametrize("name", PEERS)
def test_five_steps_equal_those_of_open_clip(name: str) -> None:
    """In float64, where nothing hides in rounding; eval/bench/step.py compares twenty steps in float32."""
    objective = objectives.build(objectives.parse(name))
    torch.manual_seed(0)
    model = models.create(models.Settings(arch="tiny"), objective.scale_init, objective.bias_init).double()
    peer = copy.deepcopy(model.net)
    cfg = optim.Settings(lr=1e-3, weight_decay=0.2, clip=1.0)
    ours = optim.build(cfg, model)
    decays = [p for n, p in peer.named_parameters() if p.ndim > 1 and n != "logit_scale"]
    spared = [p for n, p in peer.named_parameters() if p.ndim <= 1]
    theirs = torch.optim.AdamW(
        [{"params": spared, "weight_decay": 0.0}, {"params": decays, "weight_decay": 0.2}],
        lr=1e-3, betas=(0.9, 0.98), eps=1e-6,
    )  # fmt: skip
    for batch in five_batches(model):
        floats = (batch.images.double() / 255 - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1)
        trimmed = Batch(floats, model.tokenizer.trim(batch.text), batch.position, batch.keys)
        assert trimmed.text.shape[1] < batch.text.shape[1]
        ours.zero_grad()
        loss = step.gradients(model, objective, trimmed, chunk=4)
        theirs.zero_grad()
        wanted = PEERS[name](*peer(floats, batch.text))
        wanted.backward()
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-9, atol=1e-9)
        for (key, p), q in zip(model.net.named_parameters(), peer.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
        for weights, optimizer in ((model, ours), (peer, theirs)):
            torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
            optimizer.step()
        model.clamp_scale()
        with torch.no_grad():
            peer.logit_scale.clamp_(0, math.log(100))
    for (key, p), q in zip(model.net.named_parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


def _both(rank: int) -> dict[str, Any]:
    torch.manual_seed(1)
    rows = normalize(torch.randn(2, 8, 5, dtype=torch.float64), dim=-1)[:, rank * 4 : rank * 4 + 4]
    batch = Batch(torch.empty(4), torch.empty(4), torch.arange(4), [])
    peers = {
        "softmax": ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=2),
        "sigmoid": SigLipLoss(rank=rank, world_size=2),
    }
    results = {}
    for name, peer in peers.items():
        objective = objectives.build(objectives.parse(name))
        scale = torch.tensor(10.0, dtype=torch.float64)
        bias = None if objective.bias_init is None else torch.tensor(-2.0, dtype=torch.float64)
        for who in ("ours", "theirs"):
            image, text = (x.clone().requires_grad_() for x in rows)
            if who == "ours":
                loss = objective(Embeddings(image, text, scale, bias), batch)
            else:
                loss = peer(image, text, scale) if bias is None else peer(image, text, scale, bias)
            loss.backward()
            results[f"{name} {who}"] = [loss.detach(), image.grad, text.grad]
    return results


def test_two_ranks_equal_the_exact_modes_of_open_clip() -> None:
    for found in two_ranks.run(_both):
        for name in PEERS:
            for x, y in zip(found[f"{name} ours"], found[f"{name} theirs"], strict=True):
                torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
