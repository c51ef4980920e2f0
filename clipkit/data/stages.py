"""Stages of a run with smaller pictures, shorter texts or fewer patches, which cost less, before the model's own."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipkit.captions import Tokenizer
from clipkit.config import settings
from clipkit.errors import UserError


@settings
class Stage:
    until: Annotated[float, Field(gt=0, le=1)]
    """Share of the run's steps at which it ends; what comes after the last stage is as the model says."""
    image_size: Annotated[int, Field(gt=0)] | None = None
    """Side of the pictures in pixels, positions are resized; null takes the model's."""
    context: Annotated[int, Field(ge=3)] | None = None
    """Longest text in tokens, longer ones are cut before their last token; null takes the model's."""
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the patches of each picture that the image tower does not see; null takes the model's."""


def stage_at(stages: Sequence[Stage], step: int, steps: int) -> Stage:
    """The stage of `step` (from 0) in a run of `steps`; one that changes nothing after the last."""
    for stage in stages:
        if step < round(stage.until * steps):
            return stage
    return Stage(until=1.0)


def check_stages(stages: Sequence[Stage], tokenizer: Tokenizer, patch: int | None) -> None:
    """Make sure of what training would only meet in the middle of a run; `patch` is the side of the image tower's
    patches, None where it takes pictures of its own side alone.

    Raises: UserError naming the setting.
    """
    before = 0.0
    for number, stage in enumerate(stages):
        here = f"data.stages.{number}"
        if stage.until <= before:
            raise UserError(
                f"{here}.until: more than {before} is needed, where the stage before ends, got {stage.until}"
            )
        before = stage.until
        if patch is None and (stage.image_size or stage.patch_dropout is not None):
            what = "image_size" if stage.image_size else "patch_dropout"
            raise UserError(f"{here}.{what}: the image tower has to be a ViT of open_clip; choose another model.arch")
        if patch and stage.image_size and stage.image_size % patch:
            near = max(1, round(stage.image_size / patch)) * patch
            raise UserError(
                f"{here}.image_size: a multiple of the model's patch of {patch} pixels is needed, got "
                f"{stage.image_size}; try {near}"
            )
        if stage.context and not tokenizer.trims:
            raise UserError(f"{here}.context: the text tower of this model takes texts of its own context alone")
        if stage.context and stage.context > tokenizer.context:
            raise UserError(f"{here}.context: at most the model's {tokenizer.context} is needed, got {stage.context}")


def shorten(text: Tensor, context: int, pad: int) -> Tensor:
    """The first `context` columns of ids [n, T]; a longer text keeps its last token, the end of text, behind fewer of
    the others."""
    if text.shape[1] <= context:
        return text
    lengths = torch.where(text != pad, torch.arange(1, text.shape[1] + 1), 0).amax(1)
    last = text.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
    short = text[:, :context].clone()
    short[:, -1] = torch.where(lengths > context, last, short[:, -1])
    return short
