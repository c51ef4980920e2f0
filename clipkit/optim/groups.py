"""Which parameters decay, and how many layers lie above each."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from clipkit.optim.settings import Settings

POOL = re.compile(r"pool")
FIRST = re.compile(r"embed|token|patch|stem|shared|pos_|position|ln_pre|norm_pre|\bwte|\bwpe")
STEM = re.compile(r"\b(conv|bn)\d")  # of a ResNet; an EfficientNet has such names at its top too
HEAD = re.compile(r"\b(head|proj|projection)\b")
NUMBERED = re.compile(r".*?\.\d+(\.blocks\.\d+)?(?=\.)")  # a layer's name; stages (ConvNeXt, Swin) hold blocks


class Place(NamedTuple):
    """Where a parameter lies: `above` layers between it and its tower's head, and whether it is in a numbered layer."""

    above: int
    inside: bool


def places(names: Iterable[str]) -> dict[str, Place]:
    """{name: Place} of parameters in the order of the model, for towers of open_clip, timm and transformers.

    Towers are `visual.` and the rest. In each, embeddings and the stem lie lowest; then come the numbered layers in
    their order; heads, poolings, last norms and the scale are at the top.
    """
    layers: dict[bool, dict[str, int]] = {True: {}, False: {}}
    found: dict[str, str | None] = {}
    for name in names:
        numbered = NUMBERED.match(name)
        layer = numbered[0] if numbered else name
        of_tower = layers[_is_visual(name)]
        if POOL.search(layer):
            found[name] = None
        elif FIRST.search(layer) or (not of_tower and not numbered and STEM.search(layer)):
            found[name] = ""
        elif not numbered or HEAD.search(layer):
            found[name] = None
        else:
            found[name] = layer
            of_tower.setdefault(layer, len(of_tower))
    return {name: _place(layer, layers[_is_visual(name)]) for name, layer in found.items()}


def _is_visual(name: str) -> bool:
    return re.search(r"\bvisual\.", name) is not None


def _place(layer: str | None, of_tower: dict[str, int]) -> Place:
    if layer is None:
        return Place(0, False)
    return Place(len(of_tower) - of_tower[layer], True) if layer else Place(len(of_tower) + 1, False)


def spared(module: nn.Module, positions: bool) -> set[str]:
    """Names of the parameters that do not decay: gains, biases, the scale and, without `positions`, what a tower's
    `no_weight_decay` names."""
    free = {name for name, p in module.named_parameters() if p.ndim <= 1 or "bias" in name or "logit_scale" in name}
    if positions:
        return free
    return free | {
        f"{above}.{name}" if above else name
        for above, part in module.named_modules()
        for name in getattr(part, "no_weight_decay", set)()  # type: ignore[operator]
    }


def groups(cfg: Settings, module: nn.Module, matrices: bool = False) -> list[dict[str, Any]]:
    """Groups of the trainable parameters with their `weight_decay`, `factor` of the rate and, with `matrices`, whether
    they are matrices of hidden layers; those with the highest rate first."""
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    free, where = spared(module, cfg.decay_positions), places(name for name, _ in module.named_parameters())
    sorted_in: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, p in trainable.items():
        place = where[name]
        factor = cfg.layer_decay**place.above if cfg.layer_decay else 1.0
        decay = 0.0 if name in free else cfg.weight_decay
        hidden = matrices and place.inside and p.ndim == 2 and name not in free
        sorted_in.setdefault((factor, decay, hidden), []).append(p)
    return [
        {"params": parameters, "weight_decay": decay, "factor": factor, "hidden": hidden}
        for (factor, decay, hidden), parameters in sorted(sorted_in.items(), key=lambda item: item[0], reverse=True)
    ]
