"""What a pair costs a model in arithmetic and in memory, found by running it on fake tensors: no device, no weights."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from clipkit.models.towers import DualEncoder

TRAINED = 3
"""Forward and backward together over the forward: each product has two of its size in its backward."""
PAIRS = 8  # of a counting pass; a fake pair costs nothing


class Imagined:
    """A dual encoder whose weights and results are shapes alone, as a GPU would compute it: texts as the columns given.

    `build` makes the model; it is called on the meta device, where weights take no memory.
    """

    def __init__(self, build: Callable[[], DualEncoder]) -> None:
        with torch.device("meta"):
            self.net = build()
        self.mode = FakeTensorMode()
        with self.mode:
            _fake(self.net)
        self.flops = lru_cache(self._flops)

    def _flops(
        self, side: int | None = None, length: int | None = None, dropout: float | None = None
    ) -> tuple[float, float]:
        """Of one pair's forward: (a picture of `side` pixels with a share of its patches dropped, a text of `length`
        tokens); null is the model's own.

        Multiplications and additions of all products, as torch counts them: attention as if no token were masked.
        """
        self.net.patch_dropout = dropout
        with torch.no_grad():
            image = self._count(lambda image, _: self.net(image=image), side, length)
            text = self._count(lambda _, text: self.net(text=text), side, length)
        self.net.patch_dropout = None
        return image, text

    def plain_flops(self) -> float:
        """Of one pair's forward as open_clip computes it: all tokens of the context, in all blocks. This is what
        published figures count."""
        with torch.no_grad():
            return self._count(
                lambda image, text: (self.net.net.encode_image(image / 1), self.net.net.encode_text(text))
            )

    def kept(self, side: int | None = None, length: int | None = None) -> tuple[float, float]:
        """Bytes that a forward keeps for its backward: (for each pair, once), as on a GPU in the model's precision.

        The second are copies of the weights in the precision of the towers.
        """
        few, many = (self._kept(pairs, side, length) for pairs in (PAIRS, 2 * PAIRS))
        return (many - few) / PAIRS, max(0.0, 2 * few - many)

    def _kept(self, pairs: int, side: int | None, length: int | None) -> int:
        sizes: dict[int, tuple[int, Tensor]] = {}
        weights = {p.untyped_storage()._cdata for p in self.net.parameters()}

        def note(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in weights:
                sizes[storage._cdata] = storage.nbytes(), x  # held, so that no other takes its number
            return x

        image, text = self._pairs(pairs, side, length)
        with self.mode, _Float32Norms(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            out = self.net(image=image, text=text)
        del out
        return sum(size for size, _ in sizes.values())

    def _pairs(self, pairs: int, side: int | None, length: int | None) -> tuple[Tensor, Tensor]:
        side, length = side or self.net.shape.size, length or self.net.tokenizer.context
        with self.mode:
            return torch.zeros(pairs, 3, side, side, dtype=torch.uint8), torch.zeros(pairs, length, dtype=torch.int64)

    def _count(
        self, work: Callable[[Tensor, Tensor], Any], side: int | None = None, length: int | None = None
    ) -> float:
        image, text = self._pairs(PAIRS, side, length)
        with self.mode, FlopCounterMode(display=False) as counter:
            work(image, text)
        return counter.get_total_flops() / PAIRS


class _Float32Norms(TorchFunctionMode):
    """Autocast on a GPU computes norms in float32 and keeps their input so; on a CPU, whose autocast fake tensors are
    under, it does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.layer_norm:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _fake(net: nn.Module) -> None:
    """Replace all weights and buffers by fake ones, inside of a FakeTensorMode; nothing converts those of the meta
    device."""
    made: dict[int, nn.Parameter] = {}
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:  # a weight may be in two places
                fake = torch.empty(p.shape, dtype=p.dtype, device="cpu")
                module._parameters[name] = made.setdefault(id(p), nn.Parameter(fake, requires_grad=p.requires_grad))
        for name, x in module._buffers.items():
            if x is not None:
                module._buffers[name] = torch.empty(x.shape, dtype=x.dtype, device="cpu")
