"""Pictures: from bytes that nobody vouches for to uint8 tensors [3, H, W].

Two gates stand before every decoder. `check_size`: a 157-byte PNG of 1 x 20,000 pixels would cost 67 s and 5 GB in a
resize of its shorter side. `check_scans`: a JPEG of 8 MB may order its 49 million pixels to be gone over 2,600 times.
JPEG goes through libjpeg-turbo at reduced scale and torch's antialiased uint8 bicubic, everything else through Pillow.
"""

import io
import math
import random
import warnings

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate, pad

from clipkit.types import Preprocess

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # an MPO is opened as the JPEG it begins with
MAX_PIXELS = 50_000_000
MAX_ASPECT = 50
MIN_SIDE = 2
MAX_SCANS = 100  # encoders write 10 or so; 100 of them take 1.5 s at the most pixels allowed
# Eighths of its size at which a JPEG may be decoded, and how many times larger than needed it must be there. 1, 2 and 4
# have SIMD in libjpeg-turbo but average neighbours, and what is then resized has 0.95 of its gradient energy or more; 3
# keeps 1.00 and takes a tenth longer than 4; 5, 6 and 7 take longer than the whole (LOG.md).
SCALES = ((1, 4.0), (2, 3.0), (4, 1.5), (3, 1.0))


def check_size(width: int, height: int) -> None:
    """Refuse pictures whose size in pixels no honest data set holds, before a decoder allocates for them.

    Raises: ValueError with the reason.
    """
    short, long = sorted((width, height))
    if short < MIN_SIDE:
        raise ValueError("too small")
    if width * height > MAX_PIXELS:
        raise ValueError("too many pixels")
    if long > MAX_ASPECT * short:
        raise ValueError("too long for its width")


def safe_open_image(data: bytes) -> Image.Image:
    """The picture, opened but not decoded, if its format and size are allowed.

    Raises: ValueError with the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:  # ValueError: texts that unpack to MBs
        raise ValueError("not a picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError("too many pixels") from error
    check_size(*image.size)
    return image


def check_scans(data: bytes) -> None:
    """Refuse a JPEG whose scans, each of which may go over all pixels and be a few bytes, are more than MAX_SCANS.

    Where one scan holds all components of a sequential JPEG, decoders stop after it, and the others are not counted.
    Otherwise all that look like scans are, those in an embedded preview too.

    Raises: ValueError with the reason.
    """
    at, sequential, components, size = 2, False, 0, len(data)
    while 0 <= (at := data.find(b"\xff", at)) < size - 9:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            sequential, components = marker in (0xC0, 0xC1), data[at + 9]
        elif marker == 0xDA:
            if sequential and data[at + 4] == components:
                return
            break
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8  # one that no length follows
        at += 1 if alone else 2 + int.from_bytes(data[at + 2 : at + 4])
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError("too many scans")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that libjpeg-turbo turns into RGB itself; None for anything else."""
    if not data.startswith(b"\xff\xd8"):
        return None
    check_scans(data)
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if space in ("CMYK", "YCCK") else (int(width), int(height))


def _look(data: bytes) -> tuple[int, int, Image.Image | None]:
    """(width, height, the opened picture, or None where libjpeg-turbo is to decode it), from the header alone.

    Raises: ValueError when the picture is not allowed.
    """
    size = _jpeg_size(data)
    if size is None:
        image = safe_open_image(data)
        return *image.size, image
    check_size(*size)
    return *size, None


def _by_pillow(image: Image.Image, mode: str = "RGB") -> np.ndarray:
    try:
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white instead of scaling it
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the transparency of palettes, which RGB drops in any case
            return np.array(image.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError("broken picture") from error


def _by_turbo(data: bytes, width: int, height: int, least: tuple[int, int] | None) -> np.ndarray:
    if least is not None:
        for eighths, room in SCALES:
            smaller = -(-width * eighths // 8), -(-height * eighths // 8)
            if smaller[0] >= room * least[0] and smaller[1] >= room * least[1]:
                width, height = smaller
                break
    try:
        return simplejpeg.decode_jpeg(data, min_width=width, min_height=height)
    except ValueError as error:
        raise ValueError("broken picture") from error


def decode(data: bytes, least: tuple[int, int] | None = None) -> Tensor:
    """The picture as uint8 [3, H, W] RGB; with `least` (width, height) a JPEG may come at a reduced scale above it, if
    a resize to `least` looks the same.

    Raises: ValueError with a short reason that can be counted.
    """
    width, height, image = _look(data)
    pixels = _by_turbo(data, width, height, least) if image is None else _by_pillow(image)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) from the header.

    Raises: ValueError when the picture is not allowed.
    """
    return _look(data)[:2]


def crop_box(width: int, height: int, scale: tuple[float, float], dice: random.Random) -> tuple[int, int, int, int]:
    """A random box (left, top, width, height) of an area within `scale` of the picture and a side ratio of 3/4 to 4/3.

    Source: the distribution of torchvision's RandomResizedCrop.
    """
    for _ in range(10):
        area = width * height * dice.uniform(*scale)
        ratio = math.exp(dice.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return dice.randint(0, width - w), dice.randint(0, height - h), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def resize(
    pixels: Tensor, height: int, width: int, interpolation: str = "bicubic", interleaved: bool = False
) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, height, width], antialiased as Pillow does it: within 0.02 of 255 on average
    where it shrinks, 0.2 where it enlarges.

    `interleaved` says that the result should lie in memory as H, W, 3, which takes 0.7 of the time.
    """
    if pixels.shape[1:] == (height, width):
        return pixels
    # The axis of pictures decides: one whose stride is the whole picture's makes torch keep the layout of the input
    one = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2) if interleaved else pixels[None]
    return interpolate(one, size=(height, width), mode=interpolation, antialias=True)[0]


def train_view(
    data: bytes,
    shape: Preprocess,
    scale: tuple[float, float],
    dice: random.Random,
    out: Tensor | None = None,
) -> Tensor:
    """A random crop of the picture at the model's input size, uint8 [3, S, S]; `out` when that is given to hold it.

    An `out` of a batch in `channels_last` is the fastest.

    Raises: ValueError with a short reason.
    """
    width, height, image = _look(data)
    left, top, w, h = crop_box(width, height, scale, dice)
    if image is None:
        least = math.ceil(width * shape.size / w), math.ceil(height * shape.size / h)
        whole = _by_turbo(data, width, height, least)
    else:
        whole = _by_pillow(image)
    across, down = whole.shape[1] / width, whole.shape[0] / height
    left, top = round(left * across), round(top * down)
    w, h = max(1, round(w * across)), max(1, round(h * down))
    crop = torch.from_numpy(whole[top : top + h, left : left + w]).permute(2, 0, 1)
    interleaved = out is not None and out.stride(0) == 1
    view = resize(crop, shape.size, shape.size, shape.interpolation, interleaved)
    return view if out is None else out.copy_(view)


def eval_view(data: bytes, shape: Preprocess, reduced: bool = False) -> Tensor:
    """The picture as the model is evaluated on it, uint8 [3, S, S]: decoded whole, resized, and cropped in the middle
    (`shortest`), squashed to a square (`squash`) or padded to one (`longest`). With `reduced` a large JPEG is decoded
    at a smaller scale: sooner, and nearly the same.

    It is Pillow that resizes, to the pixels that every other tool scores: where torch's are one off, a rank changes.
    Raises: ValueError with a short reason.
    """
    pixels, side = decode(data, _needed(data, shape) if reduced else None), shape.size
    height, width = pixels.shape[1:]
    if shape.resize_mode == "squash":
        return _resize_exactly(pixels, side, side, shape.interpolation)
    if shape.resize_mode == "longest":
        factor = side / max(height, width)
        size = max(1, round(height * factor)), max(1, round(width * factor))
        inside = _resize_exactly(pixels, *size, shape.interpolation)
        across, down = side - inside.shape[2], side - inside.shape[1]
        return pad(inside, (across // 2, across - across // 2, down // 2, down - down // 2), value=shape.fill)
    if width <= height:
        height, width = int(side * height / width), side
    else:
        height, width = side, int(side * width / height)
    pixels = _resize_exactly(pixels, height, width, shape.interpolation)
    top, left = round((height - side) / 2.0), round((width - side) / 2.0)
    return pixels[:, top : top + side, left : left + side]


def _needed(data: bytes, shape: Preprocess) -> tuple[int, int]:
    """(width, height) to which the whole picture is resized for a model."""
    if shape.resize_mode == "squash":
        return shape.size, shape.size
    sides = size_of(data)
    factor = shape.size / (max(sides) if shape.resize_mode == "longest" else min(sides))
    return math.ceil(sides[0] * factor), math.ceil(sides[1] * factor)


def _resize_exactly(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """uint8 [3, H, W] -> uint8 [3, height, width] by Pillow."""
    if pixels.shape[1:] == (height, width):
        return pixels
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    resized = image.resize((width, height), Image.Resampling[interpolation.upper()])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 standardised by the channels' `mean` [3] and `std` [3] of 0..1 values."""
    return pixels.float().mul_(1 / 255).sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def thumbnail(data: bytes, side: int) -> Image.Image:
    """A small RGB picture for people, at most `side` pixels wide and high; what is transparent is white.

    Raises: ValueError when the picture is not allowed or broken.
    """
    width, height, opened = _look(data)
    if opened is None:
        pixels = _by_turbo(data, width, height, (side, side))
    else:
        pixels = _by_pillow(opened, "RGBA" if opened.has_transparency_data else "RGB")
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    if small.mode == "RGB":
        return small
    white = Image.new("RGB", small.size, "white")
    white.paste(small, mask=small.getchannel("A"))
    return white
