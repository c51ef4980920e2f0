"""What `clipkit doctor` tries in a process of its own, since it may crash: imports, the device, one training step.

Each stage prints one line of JSON when it is done: {stage, ...what was found}, or {stage, error} and the end.
"""

import json
import time
from collections.abc import Callable
from typing import Any


def torch_() -> dict[str, Any]:
    """torch, and what it sees of the device."""
    import torch
    from torch.cuda import nccl

    from clipkit import distributed

    cards = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(i)
        cards.append({"name": facts.name, "gb": facts.total_memory / 1e9, "sm": f"{facts.major}.{facts.minor}"})
    device = torch.device("cuda" if cards else "cpu")
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": cards,
        "bf16": distributed.best_dtype(device) == torch.bfloat16,
        "nccl": ".".join(map(str, nccl.version())) if cards else None,
        "threads": torch.get_num_threads(),
    }


def torchvision() -> dict[str, Any]:
    """torchvision, whose compiled half must have been built for this torch."""
    import torchvision  # noqa: F401

    return {}


def open_clip() -> dict[str, Any]:
    """open_clip, which needs torchvision and timm."""
    import open_clip  # noqa: F401

    return {}


def step() -> dict[str, Any]:
    """One training step of a small model on random pictures, on the GPU if there is one."""
    import torch

    from clipkit import distributed, models, objectives, optim
    from clipkit.step import gradients
    from clipkit.types import Batch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = objectives.build(objectives.parse("softmax"))
    net = models.create(models.Settings(arch="tiny"), objective.scale_init).to(device)
    net.dtype = distributed.best_dtype(device)
    side, n = net.shape.size, 8
    texts = net.tokenizer([f"picture {i}" for i in range(n)])
    pictures = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    batch = Batch(pictures, texts, torch.arange(n), [str(i) for i in range(n)])
    optimizer = optim.build(optim.Settings(), net.net)
    began = time.monotonic()
    loss = gradients(net, objective, batch, None, lambda part: part.to(device))
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optim.update(optimizer, norm)
    value = loss.item()
    finite = all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert finite and bool(torch.isfinite(norm)), "weights or gradients are not finite after one step"
    return {"device": str(device), "dtype": str(net.dtype).removeprefix("torch."), "loss": value,
            "seconds": time.monotonic() - began}  # fmt: skip


STAGES: tuple[Callable[[], dict[str, Any]], ...] = (torch_, torchvision, open_clip, step)


def main() -> None:
    """Stage after stage, up to the first that fails."""
    for stage in STAGES:
        name = stage.__name__.rstrip("_")
        try:
            print(json.dumps({"stage": name, **stage()}), flush=True)
        except Exception as error:  # whatever it is, the one who asked is told
            text = " ".join(str(error).split())
            print(json.dumps({"stage": name, "error": f"{type(error).__name__}: {text}"}), flush=True)
            return


if __name__ == "__main__":
    main()
