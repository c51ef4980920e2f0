"""From a batch to gradients, in one piece or in chunks, with the same result."""

from clipkit.step.chunks import gradients
from clipkit.step.fit import auto_chunk

__all__ = ["auto_chunk", "gradients"]
