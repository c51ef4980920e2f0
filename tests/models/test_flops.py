"""What a model costs, counted on fake tensors, against formulas worked out by hand and against real tensors."""

from pathlib import Path

import pytest
import torch

from clipkit.models import Settings, gpus, text_tower
from clipkit.models.create import create, outline
from clipkit.models.flops import TRAINED, Imagined
from tests import making


def imagined(arch: str) -> Imagined:
    return Imagined(lambda: outline(Settings(arch=arch), bias=False))


def block(width: int, tokens: int, asked: int) -> int:
    """A transformer's block over `tokens`, of which `asked` are wanted: keys and values; queries and what is behind."""
    keys_values, queries = 2 * tokens * width * 2 * width, 2 * asked * width * width
    attention, after = 2 * 2 * asked * tokens * width, 2 * asked * width * width
    return keys_values + queries + attention + after + 2 * 2 * asked * width * 4 * width


def by_hand(cfg: dict, length: int, pooled: bool) -> tuple[int, int]:
    """Forward of (a picture, a text) through open_clip's ViT and text transformer."""
    seen, read, dim = cfg["vision_cfg"], cfg["text_cfg"], cfg["embed_dim"]
    patches, width = (seen["image_size"] // seen["patch_size"]) ** 2, seen["width"]
    image = 2 * patches * 3 * seen["patch_size"] ** 2 * width + 2 * width * dim
    image += (seen["layers"] - 1) * block(width, patches + 1, patches + 1)
    image += block(width, patches + 1, 1 if pooled else patches + 1)
    text = (read["layers"] - 1) * block(read["width"], length, length) + 2 * read["width"] * dim
    return image, text + block(read["width"], length, 1 if pooled else length)


def test_published_costs_are_met_and_equal_the_formula() -> None:
    for arch, gflop in (("ViT-B-32", 44.3), ("ViT-L-14", 526)):
        net = imagined(arch)
        cfg = net.net.spec["model_cfg"]
        cfg["vision_cfg"].setdefault("image_size", 224)
        assert TRAINED * net.plain_flops() / 1e9 == pytest.approx(gflop, rel=0.002)
        assert net.plain_flops() == sum(by_hand(cfg, 77, pooled=False))
        assert net.flops() == by_hand(cfg, 77, pooled=True)
        assert net.flops(length=16) == by_hand(cfg, 16, pooled=True)
        larger = {**cfg, "vision_cfg": {**cfg["vision_cfg"], "image_size": 448}}
        assert net.flops(448)[0] == by_hand(larger, 77, pooled=True)[0]
        assert net.flops(None, None, 0.5)[0] < 0.6 * net.flops()[0]


def test_what_a_forward_keeps_is_what_real_tensors_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch = making.architecture(tmp_path)
    a_pair, once = imagined(arch).kept()
    monkeypatch.setattr(text_tower, "_packed", text_tower._padded)  # as a GPU computes texts
    net = create(Settings(arch=arch), 10.0)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    sizes = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    pairs = 6
    images, text = torch.zeros(pairs, 3, 32, 32, dtype=torch.uint8), net.tokenizer(["a dog"] * pairs)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        net(image=images, text=text)
    real = sum(size for place, (size, _) in sizes.items() if place not in weights)
    assert pairs * a_pair + once == pytest.approx(real, rel=0.01)


def test_bf16_keeps_half_and_copies_of_the_weights_and_checkpointing_keeps_little(tmp_path: Path) -> None:
    net = imagined("tiny")
    whole, copies = net.kept()
    assert copies < 10_000
    net.net.dtype = torch.bfloat16
    half, copies = net.kept()
    matrices = sum(p.numel() for n, p in net.net.net.named_parameters() if p.ndim > 1 and "embedding" not in n)
    assert 0.5 * whole < half < 0.8 * whole and copies == pytest.approx(2 * matrices, rel=0.1)
    net.net.net.set_grad_checkpointing(True)
    assert net.kept()[0] < 0.3 * half


def test_gpus_are_known_by_what_the_driver_and_what_people_call_them() -> None:
    for name, key in {
        "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA A100-SXM4-40GB": "A100 40GB", "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIE", "h200": "H200", "NVIDIA L40S": "L40S", "NVIDIA L4": "L4",
        "NVIDIA GeForce RTX 4090": "RTX 4090", "NVIDIA A10G": "A10G",
    }.items():  # fmt: skip
        assert gpus.find(name) is gpus.GPUS[key]
    assert gpus.find("Tesla V100-SXM2-16GB") is None  # clipkit trains in fp32 there
