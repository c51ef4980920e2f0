"""How well the device is used, and how far a step moves the weights: numbers for the rows of metrics.jsonl."""

import math
import resource
import sys

import torch
from torch import Tensor, nn

from clipkit import parallel
from clipkit.models import DualEncoder, gpus
from clipkit.models.create import rebuild
from clipkit.models.flops import TRAINED, Imagined
from clipkit.types import Batch


class Meter:
    """Counts the arithmetic of the steps, and measures the update of those that are logged.

    `mfu` is the arithmetic that the pairs needed, over what the GPU could have done in that time at its peak in bf16:
    forward and backward of the forward that clipkit computes, at the texts' real columns and the pictures' real side.
    What the gradient cache or checkpointing computes again, and waiting for data, lowers it.
    """

    def __init__(self, net: DualEncoder, optimizer: torch.optim.Optimizer) -> None:
        self.net, self.optimizer = net, optimizer
        self.peak = _peak(net)
        self.imagined: Imagined | None = None
        self.flop, self.pairs = 0.0, 0
        self.before: list[Tensor] = []
        self.patch = next((m.weight for m in net.net.visual.modules() if isinstance(m, nn.Conv2d)), None)
        self.patch_grad: Tensor | None = None

    def count(self, batch: Batch) -> None:
        """One step took `batch`, which is this rank's."""
        self.pairs += len(batch)
        if self.peak:
            sizes = batch.images.shape[-1], batch.text.shape[1], self.net.patch_dropout
            self.flop += len(batch) * TRAINED * sum(self._model().flops(*sizes))

    @torch.no_grad()
    def before_update(self) -> None:
        """Keep what the update of a logged step is measured by; called before gradients are clipped. A copy of the
        weights lives until `row`: activations are gone by then, so that the peak of memory stays where it was."""
        self.before = [p.clone() for p in self._trainable()]
        grad = None if self.patch is None else self.patch.grad
        self.patch_grad = None if grad is None else _norm([grad])

    @torch.no_grad()
    def row(self, seconds: float) -> dict[str, float | None]:
        """What the steps since the last row did in `seconds` of this process, None for what is not finite; all ranks
        must ask."""
        found = {"pairs_per_s_per_gpu": self.pairs / seconds, "peak_memory_gb": _peak_memory(self.net.device) / 1e9}
        if self.peak:
            found["mfu"] = self.flop / seconds / self.peak
        found |= self._update()
        self.flop, self.pairs, self.before, self.patch_grad = 0.0, 0, [], None
        return {name: x if math.isfinite(x) else None for name, x in found.items()}

    def _update(self) -> dict[str, float]:
        if not self.before:
            return {}
        moved = {}
        for p, old in zip(self._trainable(), self.before, strict=True):
            moved[p] = old.sub_(p)
        found = {"update_norm": _norm(list(moved.values())).item()}
        if self.patch is not None and self.patch_grad is not None:
            rate = next(g["lr"] for g in self.optimizer.param_groups if any(p is self.patch for p in g["params"]))
            rms = _norm([moved[self.patch]]).item() / self.patch.numel() ** 0.5
            found["patch_grad_norm"] = self.patch_grad.item()
            found["patch_update_rms"] = rms / rate if rate else 0.0
        return found

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.net.parameters() if p.requires_grad]

    def _model(self) -> Imagined:
        """Made when it is first asked for: it takes a second."""
        if self.imagined is None:
            self.imagined = Imagined(lambda: rebuild(self.net.spec, self.net.text_folder))
        return self.imagined


def _norm(tensors: list[Tensor]) -> Tensor:
    """The norm [] of all of them together, over all ranks that hold parts of them."""
    return parallel.full(nn.utils.get_total_norm(tensors))


def _peak(net: DualEncoder) -> float | None:
    """FLOP/s that the GPU of `net` could reach in the precision of the towers, where that is known."""
    if net.device.type != "cuda" or net.dtype != torch.bfloat16:
        return None
    kind = gpus.find(torch.cuda.get_device_name(net.device))
    return kind.peak if kind else None


def _peak_memory(device: torch.device) -> float:
    """The most bytes that tensors of this process have taken on its GPU, or the process in memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
