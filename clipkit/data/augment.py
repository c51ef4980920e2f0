"""Random changes of whole batches of pictures, on the device that holds them; off unless a recipe asks for them.

What happens to a picture is a pure function of the run's seed and the picture's position, so that it is the same for
any number of ranks and workers and after a resume. The order is fixed: flip, brightness, contrast, saturation, hue,
grey. Each gives what torchvision's function gives for that uint8 picture alone, to the last value on the CPUs tried;
only hue is 1 of 255 away at about one value in 100,000.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from clipkit.config import settings
from clipkit.data.order import mix

DRAWS = 4  # sets these random numbers apart from others that are made of a seed and a position
# Values worked on at once in float32, some five times over: a CPU is twice as fast where they fit its cache (2.1
# against 3.9 ms a picture of 224 px), a GPU wants many
AT_ONCE_ON_CPU, AT_ONCE = 1 << 20, 1 << 25
LUMA = (0.2989, 0.587, 0.114)

Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


@settings
class Settings:
    flip: Share = 0.0
    """Share of the pictures that are mirrored left to right."""
    jitter: Share = 0.0
    """Share of the pictures whose colours are changed, by the four strengths below."""
    brightness: Strength = 0.32
    """Brightness is multiplied by a number between 1 - this (at least 0) and 1 + this."""
    contrast: Strength = 0.32
    """Contrast is multiplied by a number between 1 - this (at least 0) and 1 + this."""
    saturation: Strength = 0.32
    """Saturation is multiplied by a number between 1 - this (at least 0) and 1 + this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.08
    """Hues are turned by up to this share of the colour circle, either way."""
    grey: Share = 0.0
    """Share of the pictures that lose their colours."""


class Draws(NamedTuple):
    """What happens to each picture of a batch, arrays [B]: bool, and float64 where it is a factor or the hue's turn."""

    flip: np.ndarray
    jitter: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    grey: np.ndarray


def draw(position: np.ndarray, seed: int, cfg: Settings) -> Draws:
    """What happens to the pictures at `position` int64 [B]; each row depends on its own position alone."""

    def even(number: int) -> np.ndarray:
        """Evenly spread over [0, 1)."""
        return (mix(seed, position, DRAWS, number) >> np.uint64(11)) * 2.0**-53

    def factor(number: int, strength: float) -> np.ndarray:
        least = max(0.0, 1 - strength)
        return least + even(number) * (1 + strength - least)

    return Draws(
        even(0) < cfg.flip,
        even(1) < cfg.jitter,
        factor(2, cfg.brightness),
        factor(3, cfg.contrast),
        factor(4, cfg.saturation),
        (2 * even(5) - 1) * cfg.hue,
        even(6) < cfg.grey,
    )


def augment(images: Tensor, position: Tensor, seed: int, cfg: Settings) -> Tensor:
    """The pictures uint8 [B, 3, H, W] at `position` int64 [B] as `cfg` changes them; `images` is only read.

    With nothing switched on it is `images` itself.
    """
    assert images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3, (images.dtype, images.shape)
    assert position.shape == images.shape[:1], (position.shape, images.shape)
    if len(images) == 0 or not (cfg.flip or cfg.jitter or cfg.grey):
        return images
    drawn = draw(position.cpu().numpy(), seed, cfg)
    if drawn.flip.any():
        flip = torch.from_numpy(drawn.flip).to(images.device)[:, None, None, None]
        out = torch.where(flip, images.flip(-1), images)
    else:
        out = images.clone()
    changes: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = [
        (change, torch.from_numpy(amount)[:, None, None, None])
        for change, strength, amount in (
            (_brightness, cfg.brightness, drawn.brightness),
            (_contrast, cfg.contrast, drawn.contrast),
            (_saturation, cfg.saturation, drawn.saturation),
            (_hue, cfg.hue, drawn.hue),
        )
        if strength
    ]
    for rows in _parts(out, drawn.jitter) if changes else ():
        there = rows.to(out.device)
        pixels = out.index_select(0, there).float()
        for change, amount in changes:
            pixels = change(pixels, amount[rows])
        out[there] = pixels.to(torch.uint8)
    for rows in _parts(out, drawn.grey):
        there = rows.to(out.device)
        out[there] = _luma(out.index_select(0, there).float()).to(torch.uint8)
    return out


def _parts(images: Tensor, chosen: np.ndarray) -> Iterator[Tensor]:
    """The numbers of the chosen pictures, as many at a time as are worked on at once."""
    rows = torch.from_numpy(np.flatnonzero(chosen))
    values = AT_ONCE_ON_CPU if images.device.type == "cpu" else AT_ONCE
    return iter(rows.split(max(1, values // max(images[0].numel(), 1)))) if len(rows) else iter(())


# The changes take and give whole numbers 0 .. 255, float32 [b, 3, H, W] on the device, and take an amount for each
# picture, float64 [b, 1, 1, 1] on the CPU; they may write into the pixels that they are given.


def _luma(pixels: Tensor) -> Tensor:
    """How bright each pixel is, a whole number [b, 1, H, W]."""
    r, g, b = pixels.split(1, 1)
    return r.mul(LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).floor_()


def _whole(pixels: Tensor) -> Tensor:
    return pixels.clamp_(0, 255).floor_()


def _brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return _whole(pixels.mul_(factor.to(pixels)))


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    return _away_from(_luma(pixels).mean((1, 2, 3), keepdim=True), pixels, factor)


def _saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return _away_from(_luma(pixels), pixels, factor)


def _away_from(other: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    # addcmul multiplies and adds in one rounding, as torchvision's add does: the same values to the last
    return _whole(pixels.mul_(factor.to(pixels)).addcmul_(other, (1 - factor).to(pixels)))


def _hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turning the hue keeps the greatest and the least of a pixel's three values, v and v - c.

    With the hue h in sixths of the circle, the value of a colour is v - c * clamp(min(k, 4 - k), 0, 1), where
    k = (n + h) mod 6 and n is 5 for red, 3 for green, 1 for blue.
    """
    r, g, b = pixels.unbind(1)
    least, most = torch.aminmax(pixels, dim=1)
    c = most - least
    part = c.clamp(min=1)  # where c is 0 the hue does not matter
    of_r, of_g, of_b = (g - b).div_(part), (b - r).div_(part).add_(2), (r - g).div_(part).add_(4)
    h = torch.where(most == r, of_r, torch.where(most == g, of_g, of_b)).add_((turn[:, 0] * 6).to(pixels))
    for colour, n in enumerate((5, 3, 1)):
        k = (h + n).remainder_(6)
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        pixels[:, colour] = most - c * share
    # torchvision brings [0, 1] to whole numbers by 255.999
    return _whole(pixels.mul_(255.999 / 255))
