"""Pictures that no honest data set holds: refused with a short reason, before a decoder works for them."""

import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import images
from tests.samples import encoded
from tests.test_images import decoded, odd, photo, target


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, more: bytes = b"", content: bytes = bytes(999)) -> bytes:
    """A PNG that says it is this large and holds next to nothing."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + more
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def gif_frame(width: int, height: int) -> bytes:
    """A small GIF whose first frame says it is this large."""
    data = bytearray(encoded(Image.new("P", (20, 20)), "GIF"))
    at = data.find(b"\x2c") + 5
    data[at : at + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def scans(count: int, side: int = 64, components: int = 3, before: bytes = b"") -> bytes:
    """A valid progressive JPEG, grey all over, of `count` scans. All but the first refine one coefficient of one
    component by one bit each, and say of all blocks at once that there is nothing to it."""
    names = range(1, components + 1)
    blocks = (side // 8) ** 2
    assert blocks <= 1 << 14 and count <= 1 + 14 * 63 * components
    frame = struct.pack(">BHHB", 8, side, side, components) + b"".join(bytes([i, 0x11, 0]) for i in names)
    data = b"\xff\xd8" + before + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame)
    run = blocks.bit_length() - 1  # blocks = 2**run
    data += segment(0xC4, bytes([0x00, 1, *[0] * 15, 0])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, run << 4]))
    every = bytes([components]) + b"".join(bytes([i, 0]) for i in names)
    bits = blocks * components  # one bit a block: no difference
    data += segment(0xDA, every + b"\0\0\0") + bytes(bits // 8) + (b"" if bits % 8 == 0 else b"\x7f")
    steps = [(k, i, bit) for k in range(1, 64) for i in names for bit in range(13, -1, -1)]
    for k, i, bit in steps[: count - 1]:
        above = 0 if bit == 13 else bit + 1
        one = int("0" + "0" * run + "1" * (15 - run), 2).to_bytes(2)  # the run's code, its length, filling
        data += segment(0xDA, bytes([1, i, 0, k, k, above << 4 | bit])) + one
    return data + b"\xff\xd9"


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG whose frame says it is this large."""
    data = bytearray(encoded(photo(64, 64)))
    at = data.find(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


JPEG = encoded(photo(400, 300))
# What a decoder skips before the frame: a scan within a comment, filling, a marker that stands alone, rubbish
HIDDEN = segment(0xFE, b"\xff\xc0\0\x0b\x08\0\1\0\1\1\xff\xda\0\x03\1") + b"\xff\xff\xff\x01\xff\0rubbish"
TEXT = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))
REFUSED = {
    "nothing": (b"", "not a picture"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "not a picture"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
    "TIFF": (encoded(photo(20, 20), "TIFF"), "not a picture"),
    "EPS": (encoded(photo(20, 20), "EPS"), "not a picture"),
    "JPEG cut in its header": (JPEG[:100], "not a picture"),
    "JPEG cut in half": (JPEG[: len(JPEG) // 2], "broken picture"),
    "PNG cut in half": (encoded(photo(80, 80), "PNG")[:2000], "broken picture"),
    "PNG of 1 x 20,000": (encoded(Image.new("RGB", (1, 20_000)), "PNG"), "too small"),
    "PNG of 20,000 x 200": (png_header(20_000, 200), "too long for its width"),
    "PNG of 100,000 x 100,000": (png_header(100_000, 100_000), "too many pixels"),
    "PNG of 2**31 - 1 squared": (png_header(2**31 - 1, 2**31 - 1), "too many pixels"),
    "PNG of 9,000 x 9,000": (png_header(9_000, 9_000), "too many pixels"),
    "PNG of 13,300 x 13,300": (png_header(13_300, 13_300, content=bytes(22_000_000)), "too many pixels"),
    "PNG of 40,000 x 2": (png_header(40_000, 2), "too long for its width"),
    "PNG of one pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "too small"),
    "PNG with 99 MB of text": (
        png_header(9, 9, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))),
        "not a picture",
    ),
    "GIF with a frame of 65,000 x 65,000": (gif_frame(65_000, 65_000), "too many pixels"),
    "TIFF of 16 bits": (encoded(Image.fromarray(np.zeros((9, 9), np.uint16)), "TIFF"), "not a picture"),
    "JPEG of 101 scans": (scans(101), "too many scans"),
    "CMYK JPEG of 101 scans": (scans(101, components=4), "too many scans"),
    "JPEG whose scans hide": (scans(101, before=HIDDEN), "too many scans"),
    "PNG of 0 x 5": (png_header(0, 5), "not a picture"),
    "JPEG of 65,500 x 65,500": (jpeg_header(65_500, 65_500), "too many pixels"),
    "JPEG of 60,000 x 64": (jpeg_header(60_000, 64), "too long for its width"),
    "JPEG of one pixel": (encoded(Image.new("RGB", (1, 1))), "too small"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_dishonest_bytes_are_refused_with_a_short_reason(name: str) -> None:
    data, reason = REFUSED[name]
    for use in (images.decode, lambda d: images.eval_view(d, target(16)), lambda d: images.thumbnail(d, 16)):
        with pytest.raises(ValueError, match=f"^{reason}$"):
            use(data)
    with pytest.raises(ValueError, match=f"^{reason}$"):
        images.train_view(data, target(16), (0.9, 1.0), random.Random(0))
    assert len(reason) < 40, "the loader counts reasons by their text"


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name][1].startswith("too ")])
def test_no_decoder_is_reached_by_a_picture_that_is_too_large(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("a decoder was called")

    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", reached)
    monkeypatch.setattr(Image.Image, "convert", reached)
    with pytest.raises(ValueError, match="^too "):
        images.decode(REFUSED[name][0])


def test_scans_within_the_bound_are_decoded() -> None:
    for components in (1, 3):
        data = scans(images.MAX_SCANS, components=components)
        assert data.count(b"\xff\xda") == images.MAX_SCANS
        pixels = images.decode(data)
        assert pixels.shape == (3, 64, 64) and torch.equal(pixels, decoded(data)) and bool((pixels == 128).all())


def test_only_scans_that_a_decoder_would_go_over_count() -> None:
    preview = segment(0xE1, b"\xff\xda" * 200)
    images.check_scans(JPEG[:2] + preview + JPEG[2:])  # one scan of all components: the rest is never decoded
    assert torch.equal(images.decode(JPEG[:2] + preview + JPEG[2:]), images.decode(JPEG))
    images.check_scans(JPEG[:-2] + b"\xff\xda" * 200 + JPEG[-2:])
    for start in (b"", b"\xff\xd8", JPEG[:20], JPEG[:4] + b"\xff" * 300, b"\xff\xd8" + b"\xff\x01" * 99):
        images.check_scans(start)


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [(1, 9, "too small"), (0, 0, "too small"), (50_000, 1_001, "too many pixels"), (102, 2, "too long for its width")],
)
def test_the_gate_names_its_reason(width: int, height: int, reason: str) -> None:
    for sides in ((width, height), (height, width)):
        with pytest.raises(ValueError, match=f"^{reason}$"):
            images.check_size(*sides)
    for honest in ((2, 2), (100, 2), (50_000, 1_000), (1_000, 50_000)):
        images.check_size(*honest)


def test_random_damage_gives_a_picture_or_a_value_error() -> None:
    dice = random.Random(0)
    files = [data for data, _ in odd().values()] + [encoded(photo(40, 30), form) for form in ("JPEG", "WEBP", "BMP")]
    for _ in range(1500):
        data = bytearray(dice.choice(files))
        for _ in range(dice.choice((1, 2, 5, 30))):
            data[dice.randrange(len(data) if dice.random() < 0.5 else min(len(data), 200))] = dice.randrange(256)
        if dice.random() < 0.2:
            del data[dice.randrange(len(data)) :]
        try:
            view = images.train_view(bytes(data), target(16), (0.9, 1.0), dice)
        except ValueError as error:
            assert len(str(error)) < 40, error
        else:
            assert view.shape == (3, 16, 16) and view.dtype == torch.uint8


def test_opening_a_picture_leaves_the_warnings_of_others_alone() -> None:
    with pytest.warns(UserWarning, match="mine"):
        images.decode(odd()["palette with transparencies"][0])
        warnings.warn("mine", stacklevel=1)
