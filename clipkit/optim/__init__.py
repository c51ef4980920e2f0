"""The optimizer: which one, over which parameters at which rate, its steps and its state."""

from clipkit.optim.build import build
from clipkit.optim.rate import lr_at, set_lr
from clipkit.optim.settings import Settings
from clipkit.optim.state import load_state, state
from clipkit.optim.update import update

__all__ = ["Settings", "build", "load_state", "lr_at", "set_lr", "state", "update"]
