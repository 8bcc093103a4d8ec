"""Stretched crops, rotations and colors against formulas and Pillow."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from robustcli.contracts.networks import images
from robustcli.data.augmentation import augment
from robustcli.data.distortions import DRAWS, distorted
from robustcli.specs.settings import Augment
from robustcli.threat.noise import StreamNoise

zero_padded = partial(Augment, pad_mode="zero")


ALL = zero_padded(resized_crop=0.2, rotate=30.0, jitter=0.5)
WIDE = torch.rand(6, 3, 10, 16, generator=torch.Generator().manual_seed(0))


def chances(count: int = 6, **fixed: float) -> Tensor:
    """Draws of a batch: share, ratio, right, down, turn, brightness, contrast, saturation."""
    drawn = torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(1))
    names = ("share", "ratio", "right", "down", "turn", "brightness", "contrast", "saturation")
    for name, value in fixed.items():
        drawn[:, names.index(name)] = value
    return drawn


@pytest.mark.parametrize("kind", ["resized_crop", "rotate", "jitter"])
def test_each_stays_in_the_box_in_its_type_and_leaves_its_input(kind: str) -> None:
    for x in (WIDE, (255 * WIDE).to(torch.uint8), images(6)):
        given = x.clone()
        found = distorted(x, replace(zero_padded(), **{kind: getattr(ALL, kind)}), chances())
        assert torch.equal(x, given)
        assert (found.dtype, found.shape) == (x.dtype, x.shape)
        assert found.min() >= 0
        assert found.max() <= (255 if x.dtype == torch.uint8 else 1)
        assert (found != x).flatten(1).any(1).all()


def test_images_do_not_see_each_other() -> None:
    chance = chances()
    together = distorted(WIDE, ALL, chance)
    for i in range(len(WIDE)):
        alone = distorted(WIDE[i : i + 1], ALL, chance[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_a_crop_is_the_box_that_was_drawn() -> None:
    """On a ramp along each axis, every pixel shows where it comes from."""
    height, width, count = 40, 60, 200
    rows, columns = (torch.arange(side).add(0.5) / side for side in (height, width))
    ramps = torch.stack([rows[:, None].expand(-1, width), columns.expand(height, -1)]).expand(count, -1, -1, -1)
    chance = chances(count)
    found = distorted(ramps, zero_padded(resized_crop=0.25), chance)
    # Slopes inside the image; the outermost pixels may have read beyond it.
    high = (found[:, 0, -2, 30] - found[:, 0, 1, 30]) * height / (height - 3)
    wide = (found[:, 1, 20, -2] - found[:, 1, 20, 1]) * width / (width - 3)
    share, ratio = 0.25 + 0.75 * chance[:, 0], 0.75 * (16 / 9) ** chance[:, 1]
    fits = (share * ratio * height / width < 1) & (share / ratio * width / height < 1)
    assert 100 < fits.sum() < count
    torch.testing.assert_close((high * wide)[fits], share[fits], atol=1e-3, rtol=0)
    torch.testing.assert_close((wide * width / (high * height))[fits], ratio[fits], atol=1e-2, rtol=0)
    torch.testing.assert_close(wide[~fits].maximum(high[~fits]), torch.ones(int((~fits).sum())), atol=1e-3, rtol=0)
    top, left = found[:, 0, 1, 30] - 1.5 * high / height, found[:, 1, 20, 1] - 1.5 * wide / width
    torch.testing.assert_close(top, (1 - high) * chance[:, 3], atol=1e-3, rtol=0)
    torch.testing.assert_close(left, (1 - wide) * chance[:, 2], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("turn", "quarters"), [(1.0, 1), (0.0, -1), (0.5, 0)])
def test_a_quarter_turn(turn: float, quarters: int) -> None:
    square = WIDE[..., :10].contiguous()
    found = distorted(square, zero_padded(rotate=90.0), chances(turn=turn))
    torch.testing.assert_close(found, square.rot90(quarters, (2, 3)), atol=1e-5, rtol=0)


def test_a_turn_is_pillows() -> None:
    smooth = torch.nn.functional.interpolate(WIDE[:, :1], (60, 90), mode="bicubic").clamp(0, 1)
    found = distorted(smooth, zero_padded(rotate=20.0), chances(turn=1.0))
    for before, after in zip(smooth, found, strict=True):
        turned = to_tensor(to_pil_image(before).rotate(20, Image.Resampling.BILINEAR))
        inner = (slice(None), slice(15, 45), slice(20, 70))
        assert (turned[inner] - after[inner]).abs().max() < 0.02
    assert found[0, 0, 0, 0] == 0, "what comes from beyond the image"


def test_colors_are_pillows() -> None:
    """Pillow rounds to whole levels after every step; floats do not."""
    chance = chances()
    found = distorted(WIDE, zero_padded(jitter=0.5), chance)
    for before, after, drawn in zip(WIDE, found, chance[:, 5:].tolist(), strict=True):
        image = to_pil_image(before)
        for kind, share in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), drawn, strict=True
        ):
            image = kind(image).enhance(0.5 + share)
        assert (to_tensor(image) - after).abs().max() < 0.02


def test_gray_images_keep_their_saturation() -> None:
    x = images(6)
    found = [distorted(x, zero_padded(jitter=0.5), chances(saturation=value)) for value in (0.0, 0.9)]
    torch.testing.assert_close(found[0], found[1])


def test_switching_one_off_leaves_the_others() -> None:
    def seen(chosen: Augment) -> Tensor:
        return augment(WIDE, chosen, StreamNoise(torch.Generator().manual_seed(5)))

    old = zero_padded(crop=2, flip=True, cutout=3)
    torch.testing.assert_close(seen(replace(old, rotate=1e-9)), seen(old), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen(replace(ALL, jitter=1e-9)), seen(replace(ALL, jitter=0.0)), atol=1e-4, rtol=0)
    assert not torch.equal(seen(replace(old, rotate=20.0)), seen(old))
    assert torch.equal(seen(ALL), seen(ALL))
