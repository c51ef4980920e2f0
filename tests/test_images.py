"""Honest pictures: equal to open_clip's transforms; what is refused has its tests in test_images_refused.py."""

import io
import random
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
    assert images.decode(data, (100, 75)).shape[1:] == (300, 400)
    for seed in range(10):
        reduced = images.train_view(data, target(64), (0.9, 1.0), random.Random(seed))
        left, top, w, h = images.crop_box(800, 600, (0.9, 1.0), random.Random(seed))
        left, top, w, h = (round(x / 2) * 2 for x in (left, top, w, h))  # to whole reduced pixels
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
def test_a_reduced_picture_has_a_fast_size_with_room_for_a_resize(size: tuple[int, int]) -> None:
    data, dice, seen = encoded(photo(*size)), random.Random(0), set()
    for _ in range(60):
        least = [max(1, round(side / 2 ** dice.uniform(0, 6))) for side in size]
        room = {k: min(-(-side * k // 8) / need for side, need in zip(size, least, strict=True)) for k in range(1, 9)}
        wanted = 1 if room[1] >= 4 else 2 if room[2] >= 3 else 4 if room[4] >= 1.5 else 3 if room[3] >= 1 else 8
        found = tuple(images.decode(data, (least[0], least[1])).shape[:0:-1])
        assert found == tuple(-(-side * wanted // 8) for side in size)
        seen.add(wanted)
    assert seen == {1, 2, 3, 4, 8} or min(size) < 50
    assert torch.equal(images.decode(data, (size[0] + 1, 1)), images.decode(data))


@needs_clipart
def test_a_reduced_decode_hardly_blurs_a_training_view() -> None:
    """Gradient energy against the whole decode's; the crop's box may move by one pixel of the reduced picture."""
    source, kept = Shards(f"{CLIPART}/test-*.tar"), []
    for number in range(0, len(source), 40):
        data = source.image(number)
        for size in (72, 96, 130):
            reduced = images.train_view(data, target(size), FULL, random.Random(0)).float()
            whole = images.resize(images.decode(data), size, size).float()
            slopes = [(view.diff(dim=1) ** 2).mean() + (view.diff(dim=2) ** 2).mean() for view in (reduced, whole)]
            kept.append(float(slopes[0] / slopes[1]))
            assert float((reduced - whole).abs().mean()) < 4
    assert min(kept) > 0.9 and abs(np.mean(kept) - 1) < 0.06


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
    for pixels in (
        torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8),
        images.decode(encoded(photo(400, 300)))[:, 7:200, 3:171],
    ):
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
        "progressive JPEG": (encoded(image, progressive=True, quality=95, subsampling=0), image),
        "progressive CMYK JPEG": (encoded(image.convert("CMYK"), quality=100, progressive=True), image),
        "JPEG that lies on its side": (encoded(image, quality=95, subsampling=0, exif=sideways()), image),
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


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_in_a_thumbnail(mode: str) -> None:
    red = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    red.paste((200, 0, 0, 255), (30, 0, 60, 40))
    small = images.thumbnail(encoded(red.convert(mode), "PNG"), 20)
    left, right = small.getpixel((2, 6)), small.getpixel((17, 6))
    assert left == (255, 255, 255) and right == ((60, 60, 60) if mode == "LA" else (200, 0, 0))
