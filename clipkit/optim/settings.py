"""The settings of the optimizer and of its rate."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from clipkit.config import settings


@settings
class Settings:
    name: str = "adamw"
    """The optimizer: adamw, lamb, muon (AdamW for all but hidden matrices), or one of timm (lion) or torch (NAdam)."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of the optimizer, under its own names; for example {momentum: 0.9} of muon."""
    lr: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    layer_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Rate of a layer as a share of the one above; heads and scale learn at lr, embeddings slowest. null: all at lr."""
    warmup: Annotated[int, Field(ge=0)] = 500
    """Steps over which the rate rises to its peak."""
    schedule: Literal["cosine", "constant", "wsd", "rsqrt"] = "cosine"
    """After the warmup: a cosine, constant, constant and a cooldown (wsd), or 1/sqrt(step) and a cooldown (rsqrt)."""
    cooldown: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the run, at its end, over which wsd and rsqrt fall to lr_end."""
    cooldown_shape: Literal["linear", "sqrt"] = "linear"
    """How they fall: with x from 0 to 1, as 1 - x or as 1 - sqrt(x)."""
    lr_end: Annotated[float, Field(ge=0)] = 0.0
    """Rate at the last step of a cosine or a cooldown."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """Decay of weights with more than one dimension; gains, biases and the scale are spared."""
    decay_positions: bool = True
    """Decay position embeddings too, as open_clip 3.3 does; false spares all that a tower's no_weight_decay names."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """Averaging of the gradient and of its square in adamw, lamb and muon's AdamW."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Guard against division by zero in adamw, lamb and muon's AdamW."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Greatest norm of the gradient; null never clips."""
