"""Changed pictures equal torchvision's, one picture at a time, and depend on nothing but seed and position."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipkit import config
from clipkit.data import augment as module
from clipkit.data.augment import Settings, augment, draw
from clipkit.errors import UserError

NONE = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
EXACT = [{"flip": 0.5}, {"grey": 0.5}, {"jitter": 1.0, **NONE, "brightness": 0.7}]
ROUNDED = [{"jitter": 1.0, **NONE, name: by} for name, by in (("contrast", 0.8), ("saturation", 2.0), ("hue", 0.5))]
ALL = {"flip": 0.5, "jitter": 0.8, "grey": 0.2}


def pictures(count: int, height: int = 40, width: int = 56) -> Tensor:
    """Noise, smooth colours, and flat areas of black, white, greys and pure colours."""
    dice = torch.Generator().manual_seed(count)
    out = torch.randint(0, 256, (count, 3, height, width), generator=dice, dtype=torch.uint8)
    out[::3] = torch.linspace(0, 255, width).to(torch.uint8)
    out[1::3, :, :, : width // 2] = torch.tensor([0, 255]).to(torch.uint8).repeat_interleave(height // 2)[:, None]
    out[1::3, 1, : height // 3] = 0
    out[2::4, 2] = out[2::4, 0]
    return out


def one_by_one(images: Tensor, position: Tensor, seed: int, cfg: Settings) -> Tensor:
    drawn = draw(position.numpy(), seed, cfg)
    out = []
    for i, image in enumerate(images):
        if drawn.flip[i]:
            image = F.horizontal_flip(image)
        if drawn.jitter[i]:
            image = F.adjust_brightness(image, drawn.brightness[i])
            image = F.adjust_contrast(image, drawn.contrast[i])
            image = F.adjust_saturation(image, drawn.saturation[i])
            image = F.adjust_hue(image, drawn.hue[i]) if cfg.hue else image
        out.append(F.rgb_to_grayscale(image, 3) if drawn.grey[i] else image)
    return torch.stack(out) if out else images


def away(images: Tensor, position: Tensor, cfg: Settings) -> Tensor:
    """How far each value is from the plain way's."""
    ours = augment(images, position, 5, cfg)
    assert ours.dtype == torch.uint8 and ours.shape == images.shape
    return (ours.int() - one_by_one(images, position, 5, cfg).int()).abs()


@pytest.mark.parametrize("count", [0, 1, 13])
@pytest.mark.parametrize("kwargs", EXACT)
def test_flip_grey_and_brightness_are_torchvisions(kwargs: dict[str, Any], count: int) -> None:
    assert not away(pictures(count), torch.arange(count) + 70, Settings(**kwargs)).any()


@pytest.mark.parametrize("count", [0, 1, 13])
@pytest.mark.parametrize("kwargs", ROUNDED)
def test_contrast_saturation_and_hue_are_torchvisions_up_to_rounding(kwargs: dict[str, Any], count: int) -> None:
    off = away(pictures(count), torch.arange(count) + 70, Settings(**kwargs))
    assert off.numel() == 0 or (off.max() <= 1 and off.float().mean() < 3e-3)


def test_all_changes_together_come_in_torchvisions_values_and_the_order_told() -> None:
    off = away(pictures(40), torch.arange(40) * 7, Settings(**ALL))
    assert off.max() <= 3 and off.float().mean() < 3e-3
    assert (off > 1).float().mean() < 1e-4


@pytest.mark.parametrize("turn", [-0.5, -0.31, -1 / 6, 0.0, 0.05, 1 / 3, 0.5])
def test_any_colour_turns_as_torchvisions(turn: float) -> None:
    values = torch.tensor([0, 1, 2, 50, 127, 128, 200, 254, 255])
    image = torch.cartesian_prod(values, values, values).T.reshape(1, 3, 27, 27).to(torch.uint8)
    ours = module._hue(image.float(), torch.full((1, 1, 1, 1), turn, dtype=torch.float64))
    assert (ours - F.adjust_hue(image, turn).float()).abs().max() <= 1


def test_a_third_of_the_circle_turns_red_to_green_to_blue() -> None:
    red, third = (
        torch.tensor([200.0, 0.0, 0.0]).reshape(1, 3, 1, 1),
        torch.full((1, 1, 1, 1), 1 / 3, dtype=torch.float64),
    )
    green = module._hue(red.clone(), third)
    assert green.flatten().tolist() == [0, 200, 0]
    assert module._hue(green, third).flatten().tolist() == [0, 0, 200]


def test_a_picture_changes_the_same_in_any_batch_at_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    images, position, cfg = pictures(24), torch.arange(24) + 10**12, Settings(**ALL)
    whole = augment(images, position, 1, cfg)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images[order], position[order], 1, cfg), whole[order])
    parts = [augment(images[rows], position[rows], 1, cfg) for rows in torch.arange(24).split(5)]
    assert torch.equal(torch.cat(parts), whole)
    for at_once in (1, 40_000):
        monkeypatch.setattr(module, "AT_ONCE_ON_CPU", at_once)
        assert torch.equal(augment(images, position, 1, cfg), whole)
    assert not torch.equal(augment(images, position, 2, cfg), whole)
    assert not torch.equal(augment(images, position + 1, 1, cfg), whole)


def test_shares_and_factors_are_as_asked_and_independent() -> None:
    cfg = Settings(flip=0.5, jitter=0.8, grey=0.1, brightness=0.4, contrast=2.0, hue=0.1)
    drawn = draw(np.arange(20_000), 3, cfg)
    for name, share in (("flip", 0.5), ("jitter", 0.8), ("grey", 0.1)):
        assert abs(getattr(drawn, name).mean() - share) < 0.015, name
    for name, least, most in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0, 3),
        ("saturation", 0.68, 1.32),
        ("hue", -0.1, 0.1),
    ):
        values = getattr(drawn, name)
        assert least <= values.min() and values.max() <= most and abs(values.mean() - (least + most) / 2) < 0.02
        assert np.ptp(values) > 0.99 * (most - least)
    together = np.corrcoef(np.stack([column.astype(float) for column in drawn]))
    assert np.abs(together - np.eye(7)).max() < 0.04


def test_a_draw_depends_on_its_own_position_alone() -> None:
    cfg = Settings(**ALL)
    whole = draw(np.arange(50), 9, cfg)
    for i in (0, 17, 49):
        for column, alone in zip(whole, draw(np.array([i]), 9, cfg), strict=True):
            assert column[i] == alone[0]


def test_nothing_switched_on_gives_the_very_same_tensor() -> None:
    images = pictures(3)
    assert augment(images, torch.arange(3), 0, Settings()) is images
    assert augment(images, torch.arange(3), 0, Settings(brightness=1.0)) is images


def test_what_is_given_is_only_read() -> None:
    images = pictures(9)
    before = images.clone()
    assert not torch.equal(augment(images, torch.arange(9), 0, Settings(flip=1.0, jitter=1.0, grey=1.0)), before)
    augment(images, torch.arange(9), 0, Settings(jitter=1.0, **NONE))
    assert torch.equal(images, before)


def test_a_share_of_one_changes_every_picture_and_none_without_strength() -> None:
    images, position = pictures(30), torch.arange(30)
    assert torch.equal(augment(images, position, 0, Settings(flip=1.0)), images.flip(-1))
    grey = augment(images, position, 0, Settings(grey=1.0))
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    assert draw(np.arange(1000), 0, Settings(jitter=1.0)).jitter.all()
    assert torch.equal(augment(images, position, 0, Settings(jitter=1.0, **NONE)), images)


def test_other_pictures_than_uint8_rgb_are_our_own_mistake() -> None:
    for images in (pictures(2).float(), pictures(2)[0], pictures(2)[:, :1]):
        with pytest.raises(AssertionError):
            augment(images, torch.arange(len(images)), 0, Settings())


@pytest.mark.parametrize(
    "tree, text",
    [
        ({"flip": 1.5}, "flip: a number of at most 1.0 is needed, got 1.5"),
        ({"jitter": -0.1}, "jitter: a number of at least 0.0 is needed, got -0.1"),
        ({"brightness": -1}, "brightness: a number of at least 0.0 is needed, got -1"),
        ({"hue": 0.6}, "hue: a number of at most 0.5 is needed, got 0.6"),
        ({"gray": 0.1}, "gray: unknown key; did you mean 'grey'?"),
    ],
)
def test_settings_out_of_range_are_refused(tree: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as refused:
        config.check(Settings, tree, "recipe.yaml")
    assert str(refused.value).splitlines() == ["recipe.yaml: 1 bad setting", f"  {text}"]


def test_every_setting_has_a_help_line() -> None:
    assert all(help_line for _, _, _, help_line in config.describe(Settings))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_cpus_values_up_to_rounding() -> None:
    images, position, cfg = pictures(16), torch.arange(16), Settings(**ALL)
    there = augment(images.cuda(), position, 0, cfg)
    off = (there.cpu().int() - augment(images, position, 0, cfg).int()).abs()
    assert there.is_cuda and off.max() <= 3 and off.float().mean() < 3e-3
