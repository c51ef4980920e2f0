"""An exponential moving average of the weights."""

import torch
from torch import Tensor, nn


class Ema:
    """Averages of the parameters and copies of the buffers of `module`, under their names in its state dict.

    After n updates with decay d a weight is d^n of its first value plus the rest of its later ones.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = module
        self.average = {name: x.detach().clone() for name, x in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        now = self.module.state_dict()
        floats = [name for name, x in now.items() if x.is_floating_point()]
        for name in floats:
            self.average[name].lerp_(now[name], 1 - self.decay)
        for name in now.keys() - set(floats):
            self.average[name].copy_(now[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the weights; a second call restores both."""
        for name, x in self.module.state_dict().items():
            kept = x.clone()
            x.copy_(self.average[name])
            self.average[name] = kept

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, x in self.average.items():
            x.copy_(tensors[name])
