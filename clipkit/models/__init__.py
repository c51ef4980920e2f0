"""Dual encoders: open_clip's architectures, files of our own, text towers from Hugging Face folders, checkpoints."""

from clipkit.models.create import Settings, create, needs
from clipkit.models.ema import Ema
from clipkit.models.encode import (
    CPU_BATCH,
    Content,
    Pictures,
    decode_pictures,
    embed_images,
    embed_texts,
    embed_tokens,
    embed_views,
    pipeline,
    read_pictures,
)
from clipkit.models.load import Named, load
from clipkit.models.speed import speed_up, stacked
from clipkit.models.towers import DualEncoder

__all__ = [
    "CPU_BATCH",
    "Content",
    "DualEncoder",
    "Ema",
    "Named",
    "Pictures",
    "Settings",
    "create",
    "decode_pictures",
    "embed_images",
    "embed_texts",
    "embed_tokens",
    "embed_views",
    "load",
    "needs",
    "pipeline",
    "read_pictures",
    "speed_up",
    "stacked",
]
