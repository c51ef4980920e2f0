"""Pictures: equal to open_clip's transforms where they are honest, refused with a short reason where they are not."""

import io
import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import PILToTensor, RandomResizedCrop

from clipkit import images
from clipkit.shards import Shards
from clipkit.types import Preprocess
from tests.samples import CLIPART, encoded, needs_clipart, shape

FULL = (1.0, 1.0)


def target(size: int, **more: Any) -> Preprocess:
    return Preprocess(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), **more)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with noise and hard edges, so that a resize has something to get wrong."""
    dice = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (7 + 9 * c) + c) * np.cos(y / (11 + 5 * c)) for c in range(3)]
    pixels = np.stack(waves, 2) + dice.normal(0, 12, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 60)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def decoded(data: bytes) -> torch.Tensor:
    return PILToTensor()(Image.open(io.BytesIO(data)).convert("RGB"))


# Equal to the reference


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(300, 200), (199, 301), (224, 224), (64, 65), (40, 30), (500, 33)])
def test_the_evaluation_view_is_open_clips(size: tuple[int, int], interpolation: str, mode: str, form: str) -> None:
    wanted = open_clip.image_transform(
        64, False, mean=(0,) * 3, std=(1,) * 3, resize_mode=mode, interpolation=interpolation, fill_color=37
    )
    image = photo(*size)
    data = encoded(image, form)
    found = images.eval_view(data, target(64, resize_mode=mode, interpolation=interpolation, fill=37))
    theirs = wanted(Image.open(io.BytesIO(data))) * 255
    assert found.shape == (3, 64, 64) and found.dtype == torch.uint8
    assert float((found - theirs).abs().mean()) <= 0.05
    assert float((found - theirs).abs().max()) <= 1.01


@needs_clipart
def test_real_pictures_are_seen_as_open_clip_sees_them() -> None:
    source = Shards(f"{CLIPART}/test-*.tar")
    wanted = open_clip.image_transform(224, False, mean=(0,) * 3, std=(1,) * 3)
    for number in range(0, len(source), 60):
        data = source.image(number)
        theirs = wanted(Image.open(io.BytesIO(data))) * 255
        assert float((images.eval_view(data, target(224)) - theirs).abs().mean()) <= 0.05


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(97, 61), (2, 2), (2, 100)])
def test_a_decoded_picture_is_pillows(size: tuple[int, int], form: str) -> None:
    data = encoded(photo(*size), form)
    difference = (images.decode(data).int() - decoded(data).int()).abs()
    assert int(difference.max()) <= (1 if form == "JPEG" else 0)
    assert images.size_of(data) == size


@pytest.mark.parametrize("scale", [FULL, (0.9, 1.0), (0.08, 1.0)])
def test_the_training_view_is_the_exact_crop_of_a_picture_that_is_not_reduced(scale: tuple[float, float]) -> None:
    data, dice, again = encoded(photo(400, 300), "PNG"), random.Random(3), random.Random(3)
    for _ in range(20):
        found = images.train_view(data, target(32), scale, dice)
        left, top, w, h = images.crop_box(400, 300, scale, again)
        crop = Image.open(io.BytesIO(data)).crop((left, top, left + w, top + h))
        wanted = PILToTensor()(crop.resize((32, 32), Image.Resampling.BICUBIC))
        assert float((found.float() - wanted.float()).abs().mean()) <= 0.05


def test_an_enlarged_view_differs_from_pillows_by_roundings_alone() -> None:
    image = photo(30, 30)
    found = images.eval_view(encoded(image, "PNG"), target(100))
    wanted = PILToTensor()(image.resize((100, 100), Image.Resampling.BICUBIC))
    difference = (found.int() - wanted.int()).abs()
    assert int(difference.max()) <= 2 and float(difference.float().mean()) < 0.3


def test_a_jpeg_decoded_at_reduced_scale_gives_nearly_the_same_training_view() -> None:
    data = encoded(photo(800, 600), "JPEG", quality=92)
    assert images.decode(data, (100, 75)).shape[1:] == (75, 100)
    for seed in range(10):
        reduced = images.train_view(data, target(64), (0.9, 1.0), random.Random(seed))
        left, top, w, h = images.crop_box(800, 600, (0.9, 1.0), random.Random(seed))
        left, top, w, h = (round(x / 8) * 8 for x in (left, top, w, h))  # to whole reduced pixels
        whole = images.resize(images.decode(data)[:, top : top + h, left : left + w], 64, 64)
        assert float((reduced.float() - whole.float()).abs().mean()) < 2.5


def test_a_reduced_scale_is_never_below_what_was_asked_for() -> None:
    data = encoded(photo(333, 251))
    for least in ((1, 1), (42, 32), (100, 75), (166, 126), (333, 1), (1, 251)):
        height, width = images.decode(data, least).shape[1:]
        assert width >= least[0] and height >= least[1]


@pytest.mark.parametrize("size", [(256, 256), (300, 100), (97, 61), (1000, 21), (2, 2), (2, 100)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0), FULL])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], scale: tuple[float, float]) -> None:
    dice, picture = random.Random(1), torch.empty(3, size[1], size[0])
    torch.manual_seed(1)
    ours = np.array([images.crop_box(*size, scale, dice) for _ in range(1500)])
    boxes = [RandomResizedCrop.get_params(picture, list(scale), [3 / 4, 4 / 3]) for _ in range(1500)]
    theirs = np.array([(left, top, w, h) for top, left, h, w in boxes])
    for box, wanted in zip(ours.T, theirs.T, strict=True):
        edges = np.unique(np.concatenate([box, wanted]))
        gap = np.abs(np.searchsorted(np.sort(box), edges, "right") - np.searchsorted(np.sort(wanted), edges, "right"))
        assert gap.max() / 1500 < 0.07, "Kolmogorov-Smirnov distance; 0.07 is exceeded once in a thousand by chance"
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all() and (ours[:, 1] + ours[:, 3] <= size[1]).all()


def test_where_no_box_fits_the_middle_of_the_picture_is_taken() -> None:
    long = {images.crop_box(1000, 20, FULL, random.Random(seed)) for seed in range(30)}
    assert long == {(486, 0, 27, 20)}, "no box of the whole area has a ratio of 3/4 to 4/3"


def test_normalized_pixels_are_the_standardised_ones() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    wanted = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(images.normalize(pixels, mean, std), wanted)
    assert images.normalize(pixels[:0], mean, std).shape == (0, 3, 5, 5)


@pytest.mark.parametrize("size", [(333, 251), (64, 64), (2, 100), (9, 5), (1024, 768)])
def test_a_reduced_picture_has_the_smallest_of_the_fast_sizes_that_fits(size: tuple[int, int]) -> None:
    data, dice = encoded(photo(*size)), random.Random(0)
    fast = [tuple(-(-side * eighths // 8) for side in size) for eighths in (1, 2, 4, 8)]
    for _ in range(30):
        least = dice.randint(1, size[0]), dice.randint(1, size[1])
        wanted = min(scaled for scaled in fast if scaled[0] >= least[0] and scaled[1] >= least[1])
        assert tuple(images.decode(data, least).shape[:0:-1]) == wanted
    assert torch.equal(images.decode(data, (size[0] + 1, 1)), images.decode(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_training_view_is_written_where_it_is_wanted_whatever_the_layout(form: str) -> None:
    for size in ((400, 300), (120, 90), (64, 64)):
        data = encoded(photo(*size), form)
        planes = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        interleaved = planes.contiguous(memory_format=torch.channels_last)
        for batch in (planes, interleaved):
            found = images.train_view(data, target(64), (0.5, 1.0), random.Random(5), batch[1])
            assert found.data_ptr() == batch[1].data_ptr() and not batch[0].any()
        wanted = images.train_view(data, target(64), (0.5, 1.0), random.Random(5))
        assert torch.equal(planes[1], wanted) and torch.equal(interleaved[1], wanted)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_resize_gives_the_same_pixels_in_both_layouts(interpolation: str) -> None:
    for pixels in (torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8), images.decode(JPEG)[:, 7:200, 3:171]):
        planes = images.resize(pixels, 33, 29, interpolation)
        interleaved = images.resize(pixels, 33, 29, interpolation, interleaved=True)
        assert torch.equal(planes, interleaved) and planes.is_contiguous()
    assert interleaved.stride() == (1, 3 * 29, 3)


# Odd, and right


def sideways() -> Image.Exif:
    """An orientation, which open_clip does not follow either."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def odd() -> dict[str, tuple[bytes, Image.Image]]:
    """File, and what it should look like."""
    image = shape(3)[0]
    palette, grey = image.convert("P"), image.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    others = [shape(i)[0].convert("P") for i in range(4)]
    mpo = encoded(image, "MPO", save_all=True, append_images=[shape(1)[0]])
    return {
        "grey JPEG": (encoded(grey), grey),
        "CMYK JPEG": (encoded(image.convert("CMYK"), quality=100), image),
        "MPO": (mpo, Image.open(io.BytesIO(mpo))),
        "progressive JPEG": (encoded(image, progressive=True, quality=95), image),
        "progressive CMYK JPEG": (encoded(image.convert("CMYK"), quality=100, progressive=True), image),
        "JPEG that lies on its side": (encoded(image, quality=95, exif=sideways()), image),
        "animated WebP": (encoded(image, "WEBP", lossless=True, save_all=True, append_images=[shape(1)[0]]), image),
        "16-bit PNG": (encoded(Image.fromarray(deep), "PNG"), grey),
        "black and white PNG": (encoded(image.convert("1"), "PNG"), image.convert("1")),
        "PNG with alpha": (encoded(image.convert("RGBA"), "PNG"), image),
        "grey PNG with alpha": (encoded(grey.convert("LA"), "PNG"), grey),
        "palette with a transparent colour": (encoded(palette, "PNG", transparency=3), palette),
        "palette with transparencies": (encoded(palette, "PNG", transparency=bytes(range(100))), palette),
        "animated GIF": (encoded(palette, "GIF", save_all=True, append_images=others), palette),
        "PNG named nothing": (encoded(image, "PNG") + b"trailing rubbish", image),
    }


@pytest.mark.parametrize("name", odd())
def test_odd_pictures_come_out_right_and_without_a_warning(name: str) -> None:
    data, wanted = odd()[name]
    difference = (images.decode(data).int() - PILToTensor()(wanted.convert("RGB")).int()).abs().float()
    assert float(difference.mean()) < 2 and images.size_of(data) == wanted.size
    assert images.train_view(data, target(16), (0.9, 1.0), random.Random(0)).shape == (3, 16, 16)


def test_a_thumbnail_fits_its_box() -> None:
    assert images.thumbnail(encoded(photo(400, 100)), 40).size == (40, 10)
    assert images.thumbnail(encoded(photo(30, 60), "PNG"), 40).size == (20, 40)


# Refused


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
