"""Crops, flips and cutouts against plain loops over images."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from robustcli.data.augmentation import augment
from robustcli.errors import RobustCliError
from robustcli.specs.settings import Augment
from robustcli.threat.noise import StreamNoise

zero_padded = partial(Augment, pad_mode="zero")


CHOICES = st.builds(
    zero_padded,
    crop=st.integers(0, 3),
    pad_mode=st.sampled_from(["zero", "reflect"]),
    flip=st.booleans(),
    cutout=st.integers(0, 9),
)
# Sizes from 4 on, so that three pixels can be mirrored.
BATCHES = st.builds(
    lambda n, c, h, w, is_uint8, seed: _images(n, c, h, w, is_uint8=is_uint8, seed=seed),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(4, 8),
    st.integers(4, 8),
    st.booleans(),
    st.integers(0, 99),
)
SEEDS = st.integers(0, 2**32)


def _images(n: int, c: int, h: int, w: int, *, is_uint8: bool = True, seed: int = 0) -> Tensor:
    levels = torch.randint(1, 256, (n, c, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return levels if is_uint8 else levels.float() / 255


def _noise(seed: int) -> StreamNoise:
    return StreamNoise(torch.Generator().manual_seed(seed))


def _slow(x: Tensor, chosen: Augment, seed: int) -> Tensor:
    """One image at a time, by padding, cutting, mirroring and writing zeros."""
    chance = torch.rand((len(x), 5), generator=torch.Generator().manual_seed(seed))
    height, width = x.shape[2:]
    done = []
    for image, (down, right, mirror, row, column) in zip(x, chance.tolist(), strict=True):
        pad = [chosen.crop] * 4
        mode = "reflect" if chosen.pad_mode == "reflect" else "constant"
        padded = functional.pad(image[None].double(), pad, mode=mode)[0]
        top, left = int(down * (2 * chosen.crop + 1)), int(right * (2 * chosen.crop + 1))
        window = padded[:, top : top + height, left : left + width].clone()
        if chosen.flip and mirror < 0.5:
            window = window.flip(2)
        top, left = int(row * height) - chosen.cutout // 2, int(column * width) - chosen.cutout // 2
        window[:, max(top, 0) : max(top + chosen.cutout, 0), max(left, 0) : max(left + chosen.cutout, 0)] = 0
        done.append(window)
    return torch.stack(done).to(x.dtype)


@given(BATCHES, CHOICES, SEEDS)
@settings(deadline=None, max_examples=150)
def test_agrees_with_one_image_at_a_time(x: Tensor, chosen: Augment, seed: int) -> None:
    if not (chosen.crop or chosen.flip or chosen.cutout):
        return
    assert torch.equal(augment(x, chosen, _noise(seed)), _slow(x, chosen, seed))


@given(BATCHES, CHOICES, SEEDS)
@settings(deadline=None, max_examples=50)
def test_keeps_the_input_and_repeats_for_a_seed_in_any_memory_format(x: Tensor, chosen: Augment, seed: int) -> None:
    before = x.clone()
    first = augment(x, chosen, _noise(seed))
    again = augment(x.to(memory_format=torch.channels_last), chosen, _noise(seed))
    assert torch.equal(x, before)
    assert torch.equal(first, again)
    assert first.dtype == x.dtype
    assert first.shape == x.shape


@given(BATCHES, CHOICES, SEEDS)
@settings(deadline=None, max_examples=50)
def test_every_pixel_comes_from_its_own_image_and_channel_or_is_zero(x: Tensor, chosen: Augment, seed: int) -> None:
    out = augment(x, chosen, _noise(seed)).flatten(2)
    known = torch.cat([x.flatten(2), torch.zeros_like(x.flatten(2)[..., :1])], dim=2)
    assert (out[..., :, None] == known[..., None, :]).any(-1).all()


def test_all_off_returns_the_input_and_draws_nothing() -> None:
    x = _images(2, 3, 4, 4)
    rng = _noise(0)
    before = rng.generator.get_state()
    assert augment(x, zero_padded(), rng) is x
    assert torch.equal(rng.generator.get_state(), before)


def test_a_mirror_of_ones_has_no_zeros_and_zero_padding_has_some() -> None:
    ones = torch.ones(64, 1, 8, 8)
    assert (augment(ones, zero_padded(crop=4, pad_mode="reflect", flip=True), _noise(0)) == 1).all()
    assert (augment(ones, zero_padded(crop=4, flip=True), _noise(0)) == 0).any()


def test_switching_one_off_leaves_the_others_as_they_were() -> None:
    x = _images(32, 1, 8, 8)
    both = augment(x, zero_padded(crop=2, flip=True, cutout=3), _noise(3))
    without_cutout = augment(x, zero_padded(crop=2, flip=True), _noise(3))
    assert torch.equal(both[both > 0], without_cutout[both > 0])


def test_every_crop_both_flips_and_every_center_occur() -> None:
    n = 4000
    x = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(n, 1, 8, 8)
    crops = augment(x, zero_padded(crop=2, pad_mode="reflect"), _noise(0))[:, 0, 4, 4]
    counts = crops.long().bincount(minlength=64)
    assert (counts > 0).sum() == 25
    # 25 crops alike: 160 each; five standard deviations are 62.
    assert (counts[counts > 0] - n / 25).abs().max() < 62
    mirrored = (augment(x, zero_padded(flip=True), _noise(0))[:, 0, 0, 0] == 7).sum()
    assert abs(int(mirrored) - n / 2) < 160
    cut = augment(torch.ones_like(x), zero_padded(cutout=1), _noise(0)).flatten(1)
    assert ((cut == 0).sum(1) == 1).all()
    assert (cut == 0).any(0).all()


def test_padding_that_cannot_be_mirrored_is_refused() -> None:
    x = _images(1, 1, 4, 6)
    augment(x, zero_padded(crop=3, pad_mode="reflect"), _noise(0))
    with pytest.raises(RobustCliError, match=r"data\.augment\.crop: 4 pixels .* at most 3"):
        augment(x, zero_padded(crop=4, pad_mode="reflect"), _noise(0))
