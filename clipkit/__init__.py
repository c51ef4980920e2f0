"""clipkit: train, evaluate and search with image-text contrastive models.

model = clipkit.load("runs/vit_b32")
clipkit.classify("runs/vit_b32", ["cat.jpg"], ["cat", "dog"])
clipkit.open_index("index/photos").search(text="a red bicycle", k=5)
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipkit.classifier import classify
    from clipkit.models import load
    from clipkit.search import open_index

try:
    __version__ = version("clipkit")
except PackageNotFoundError:
    __version__ = "unknown"

# imported when asked for: torch takes seconds, and `clipkit --help` must not
_PLACES = {"load": "models", "classify": "classifier", "open_index": "search"}
__all__ = ["classify", "load", "open_index"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'clipkit' has no attribute '{name}'")
    return getattr(import_module(f"clipkit.{_PLACES[name]}"), name)
