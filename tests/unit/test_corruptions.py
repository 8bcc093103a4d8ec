"""Corruptions against closed forms, colorsys and plain loops."""

import colorsys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from robustcli.contracts.networks import images, linear_net
from robustcli.data.corruption_blurs import (
    defocus_blur,
    elastic_transform,
    gaussian_blur,
    glass_blur,
    streaked,
    zoom_blur,
)
from robustcli.data.corruption_kinds import KINDS, corrupted, fog, pixelate, snow
from robustcli.diagnostics.corruptions import Corruptions
from robustcli.errors import RobustCliError
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

Array = NDArray[Any]
GRAY_KINDS = [name for name in KINDS if name != "saturate"]


def generators(count: int = 1, first: int = 0) -> list[Generator]:
    return [np.random.default_rng(first + number) for number in range(count)]


def photo(channels: int = 3, height: int = 32, width: int = 32, count: int = 1) -> Array:
    """Smooth images in steps of 1/255, with colors of every hue and with black, white and gray."""
    i, j = np.meshgrid(np.linspace(0, 3, height), np.linspace(0, 2, width), indexing="ij")
    layers = [[0.5 + 0.5 * np.sin(i * (c + 1) + j + n) for c in range(channels)] for n in range(count)]
    x = np.round(np.array(layers) * 255) / 255
    x[:, :, 0, 0], x[:, :, -1, 0], x[:, :, 0, -1] = 0, 1, 0.2
    return x


def applied(name: str, x: Array, severity: int, sources: Sequence[Generator] | None = None) -> Array:
    """Images of a kind of corruption, before clipping and coding."""
    kind = KINDS[name]
    return kind.apply(x, kind.severities[severity - 1], sources or generators(len(x)))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_noises_have_their_moments(severity: int) -> None:
    x = np.full((1, 1, 400, 400), 0.4)
    std = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    noise = applied("gaussian_noise", x, severity) - x
    assert (noise.mean(), noise.std()) == (pytest.approx(0, abs=0.002), pytest.approx(std, rel=0.02))
    photons = (500, 250, 100, 75, 50)[severity - 1]
    shots = applied("shot_noise", x, severity)
    assert (shots.mean(), shots.var()) == (pytest.approx(0.4, rel=0.01), pytest.approx(0.4 / photons, rel=0.02))
    speckles = applied("speckle_noise", x, severity) - x
    assert speckles.std() == pytest.approx(0.4 * (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1], rel=0.02)
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    salted = applied("impulse_noise", x, severity)
    assert (salted == 0).mean() == pytest.approx(share / 2, rel=0.1)
    assert (salted == 1).mean() == pytest.approx(share / 2, rel=0.1)
    assert ((salted == 0) | (salted == 1) | (salted == 0.4)).all()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_brightness_and_saturation_are_those_of_colorsys(severity: int) -> None:
    x = photo()
    shift = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    scale, lift = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    bright, strong = np.empty_like(x), np.empty_like(x)
    for i in range(32):
        for j in range(32):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, i, j])
            bright[0, :, i, j] = colorsys.hsv_to_rgb(hue, saturation, min(value + shift, 1))
            strong[0, :, i, j] = colorsys.hsv_to_rgb(hue, min(max(saturation * scale + lift, 0), 1), value)
    assert np.allclose(applied("brightness", x, severity), bright, atol=1e-12)
    assert np.allclose(applied("saturate", x, severity), strong, atol=1e-12)


def test_contrast_shrinks_every_channel_towards_its_mean() -> None:
    x = photo()
    for severity, factor in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), start=1):
        changed = applied("contrast", x, severity)
        for channel, own in zip(changed[0], x[0], strict=True):
            assert channel.mean() == pytest.approx(own.mean())
            assert channel.std() == pytest.approx(factor * own.std())


def test_a_point_becomes_the_kernel() -> None:
    x = np.zeros((1, 1, 31, 31))
    x[0, 0, 15, 15] = 1
    offsets = np.arange(-15, 16)
    squares = offsets[:, None] ** 2 + offsets[None] ** 2
    for std in (0.6, 1.0):
        bell = np.where(np.abs(offsets) <= int(4 * std + 0.5), np.exp(-(offsets**2) / (2 * std**2)), 0)
        kernel = np.outer(bell, bell)
        assert np.allclose(gaussian_blur(x, std, generators())[0, 0], kernel / kernel.sum(), atol=1e-12)
    for radius, softness in ((0.3, 0.4), (1, 0.2), (1.5, 0.1), (6, 0.5)):
        disk, soft = squares <= radius**2, np.zeros((31, 31))
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                soft += np.exp(-(i * i + j * j) / (2 * softness**2)) * np.roll(disk, (i, j), (0, 1))
        assert np.allclose(defocus_blur(x, (radius, softness), generators())[0, 0], soft / soft.sum(), atol=1e-12)


def test_glass_swaps_near_pixels_and_keeps_all() -> None:
    # So narrow a blur changes nothing, so only the swapping remains.
    x = np.arange(2 * 3 * 9 * 7, dtype=np.float64).reshape(2, 3, 9, 7)
    changed = glass_blur(x, (0.05, 1, 2), generators(2))
    for image, own, source in zip(changed, x, generators(2), strict=True):
        expected = own.copy()
        for _ in range(2):
            moves = source.integers(-1, 1, (9, 7, 2))
            for i in range(8, 1, -1):
                for j in range(6, 1, -1):
                    down, right = moves[i - 1, j - 1]
                    here, near = expected[:, i, j].copy(), expected[:, i + down, j + right].copy()
                    expected[:, i, j], expected[:, i + down, j + right] = near, here
        assert (image == expected).all()
        assert sorted(image.flatten()) == sorted(own.flatten())
        assert (image != own).mean() > 0.3
    # All channels of a pixel move together.
    assert (changed[:, 1] - changed[:, 0] == 63).all()


def test_a_streak_is_half_a_gaussian_along_its_ray() -> None:
    x = np.zeros((3, 1, 41, 41))
    x[:, 0, 20, 20] = 1
    changed = streaked(x, 8, 3, [0, 90, -45])
    weights = np.exp(-(np.arange(17) ** 2) / 18)
    weights /= weights.sum()
    # A pixel reads ahead along the ray, so a point appears behind its place.
    assert np.allclose(changed[0, 0, 20, 20:3:-1], weights)
    assert np.allclose(changed[1, 0, 20:3:-1, 20], weights)
    # On a slanted ray, the nearest pixels are on the diagonal.
    assert np.diag(changed[2, 0, ::-1]).sum() == pytest.approx(1)
    assert changed[2, 0, 20, 20] == pytest.approx(weights[0], rel=1e-12)
    assert (changed > 0).sum() == 17 + 17 + 12
    for name in ("motion_blur", "snow"):
        one, other = (applied(name, photo(), 3, generators(1, first)) for first in (0, 1))
        assert not np.allclose(one, other)


def test_snow_whitens_and_falls_twice() -> None:
    x = photo(3, 32, 32)
    # No flake reaches a threshold of 9, so only the whitening remains.
    dry = snow(x, (0.1, 0.2, 1, 9, 8, 3, 0.9), generators())
    gray = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    assert np.allclose(dry, 0.9 * x + 0.1 * np.maximum(x, 1.5 * gray[:, None] + 0.5))
    flakes = snow(x, (0.1, 0.2, 1, 0.5, 8, 3, 0.9), generators()) - dry
    assert np.allclose(flakes, flakes[:, :, ::-1, ::-1])
    assert np.allclose(flakes[:, 0], flakes[:, 2])
    assert flakes.min() >= -1e-12
    # Without blur and zoom they are the draws above the threshold.
    sharp = snow(x, (0.1, 0.2, 1, 0.5, 0, 3, 0.9), generators()) - dry
    drawn = generators()[0].normal(0.1, 0.2, (32, 32))
    drawn = np.where(drawn < 0.5, 0, np.minimum(drawn, 1))
    assert drawn.any()
    assert np.allclose(sharp[0, 0], drawn + drawn[::-1, ::-1])


def test_zoom_flattens_a_slope_around_the_center() -> None:
    height, width = 20, 15
    slope = np.arange(width) - (width - 1) / 2
    x = np.broadcast_to(slope, (1, 1, height, width)).copy()
    for percent in (5, 25):
        factor = (1 + sum(1 / (1 + more / 100) for more in range(percent + 1))) / (percent + 2)
        assert np.allclose(zoom_blur(x, percent, generators()), factor * x, atol=1e-12)


def test_an_affine_map_takes_planes_to_planes() -> None:
    side = 40
    i, j = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    x = np.array([[i, j]], dtype=np.float64)
    moved = elastic_transform(x, (0, 0, 0.08), generators())[0]
    inner = moved[:, 8:-8, 8:-8]
    for axis in (1, 2):
        assert np.abs(np.diff(inner, 2, axis)).max() < 1e-9
    third, center = side // 3, side // 2
    corners = center + third * np.array([[1, 1], [-1, 1], [-1, -1]])
    after = corners + generators()[0].uniform(-0.08 * side, 0.08 * side, (3, 2))
    # The plane through `inner` is continued to where each corner has gone; the corner's own place is found there.
    steps = np.array([np.diff(inner, 1, 1)[:, 0, 0], np.diff(inner, 1, 2)[:, 0, 0]])
    found = inner[:, 0, 0] + (after - 8) @ steps
    assert np.allclose(found, corners, atol=1e-8)


def test_elastic_fields_are_as_strong_and_smooth_as_they_say() -> None:
    side = 64
    i, _ = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    x = i[None, None].astype(np.float64)
    rough, smooth = (
        (elastic_transform(x, (0.1, smoothness, 0), generators()) - x)[0, 0, 16:-16, 16:-16]
        for smoothness in (0.03, 0.06)
    )
    # A Gaussian window of width s leaves 1 / (2 s sqrt(pi)) of the deviation of independent draws.
    window = 1 / (2 * 0.03 * side * np.sqrt(np.pi))
    assert rough.std() == pytest.approx(0.1 * side * window / np.sqrt(3), rel=0.2)
    # With twice as wide a window the deviation is half: independent draws average out in two dimensions.
    assert smooth.std() == pytest.approx(rough.std() / 2, rel=0.35)
    assert np.abs(np.diff(smooth)).mean() / smooth.std() < np.abs(np.diff(rough)).mean() / rough.std()


def test_fog_is_a_cloud_from_0_to_1_and_keeps_the_scale() -> None:
    x = np.full((3, 1, 32, 32), 0.5)
    changed = fog(x, (1, 2), generators(3))
    # Where the cloud is 1 and 0: (x + 1) and x, times max / (max + 1).
    assert changed.max((1, 2, 3)) == pytest.approx([0.5 * 1.5 / 1.5] * 3)
    assert changed.min((1, 2, 3)) == pytest.approx([0.5 * 0.5 / 1.5] * 3)
    assert not np.allclose(changed[0], changed[1])
    slow, fast = (fog(x, (1, decay), generators(3)) for decay in (1.5, 3))
    assert np.abs(np.diff(fast)).mean() < np.abs(np.diff(slow)).mean()


def test_the_cloud_is_diamond_square_on_a_torus() -> None:
    side, decay = 16, 2.5
    source = np.random.default_rng(0)
    cloud: dict[tuple[int, int], float] = {(0, 0): 0.0}
    step, size = side, 100.0
    while step > 1:
        half = step // 2

        def put(at: tuple[int, int], around: list[tuple[int, int]], wobble: float) -> None:
            cloud[at] = sum(cloud[i % side, j % side] for i, j in around) / 4 + wobble

        for first, (down, right) in enumerate(((half, half), (half, 0), (0, half))):
            wobbles = size * source.uniform(-size, size, (side // step, side // step))
            for (i, j), wobble in np.ndenumerate(wobbles):
                a, b = i * step + down, j * step + right
                far = [(a - half, b - half), (a - half, b + half), (a + half, b - half), (a + half, b + half)]
                near = [(a - half, b), (a + half, b), (a, b - half), (a, b + half)]
                put((a, b), near if first else far, wobble)
        step, size = half, size / decay
    expected = np.array([[cloud[i, j] for j in range(side)] for i in range(side)])
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    changed = fog(np.full((1, 1, 14, 11), 0.5), (1, decay), generators())
    assert np.allclose(changed[0, 0], (0.5 + expected[:14, :11]) / 3)


def test_values_between_bytes_are_cut_off() -> None:
    x = np.full((1, 3, 4, 4), 100 / 255)
    assert np.allclose(corrupted(x, "brightness", 1, generators()) * 255, int(100 + 0.05 * 255))
    assert np.allclose(corrupted(x, "contrast", 1, generators()), x)


def test_half_the_pixels_are_means_of_blocks() -> None:
    x = photo(1, 8, 12)
    blocks = x.reshape(4, 2, 6, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    # Pillow rounds twice: after the rows and after the columns.
    assert np.abs(pixelate(x, 0.5, generators())[0, 0] - blocks).max() <= 1 / 255 + 1e-9


def test_jpeg_loses_more_at_lower_quality() -> None:
    rough = np.round(np.random.default_rng(0).random((1, 3, 32, 32)) * 255) / 255
    losses = [
        np.abs(corrupted(rough, "jpeg_compression", severity, generators()) - rough).mean() for severity in (1, 5)
    ]
    assert 0.01 < losses[0] < losses[1]
    even = np.full((1, 1, 16, 16), 128 / 255)
    assert np.allclose(corrupted(even, "jpeg_compression", 5, generators()), even)
    with pytest.raises(RobustCliError, match="1 or 3 channels, not of 2"):
        corrupted(photo(2), "jpeg_compression", 1, generators())


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_takes_every_size_and_gives_bytes(name: str) -> None:
    for channels, height, width in ((3, 32, 32), (3, 17, 24), (1, 8, 8), (1, 28, 28), (3, 2, 2), (1, 1, 1)):
        if name == "saturate" and channels == 1:
            continue
        x = photo(channels, height, width, 2)
        given = x.copy()
        for severity in (1, 5):
            changed = corrupted(x, name, severity, generators(2))
            assert changed.shape == x.shape
            assert np.allclose(changed * 255, np.round(changed * 255), atol=1e-9)
            assert 0 <= changed.min() <= changed.max() <= 1
        assert (x == given).all()


@pytest.mark.parametrize("name", KINDS)
def test_pixels_may_leave_the_range_by_rounding(name: str) -> None:
    x = photo(3, 8, 8, 2)
    x[:, :, 0, 0], x[:, :, -1, 0] = -1e-7, 1 + 1e-7
    assert (corrupted(x, name, 1, generators(2)) == corrupted(np.clip(x, 0, 1), name, 1, generators(2))).all()


@pytest.mark.parametrize("name", KINDS)
def test_severe_corruptions_change_more_and_equal_draws_the_same(name: str) -> None:
    x = photo(3, 32, 32, 4)
    mild, severe = (np.abs(corrupted(x, name, severity, generators(4)) - x).mean() for severity in (1, 5))
    assert severe > 0.005
    # Saturation falls at first and rises later; elastic fields shrink as they get rougher.
    if name not in ("saturate", "elastic_transform"):
        assert severe > mild
    together = corrupted(x, name, 3, generators(4))
    assert (together == corrupted(x, name, 3, generators(4))).all()
    alone = [corrupted(x[i : i + 1], name, 3, generators(1, i)) for i in range(4)]
    assert (together == np.concatenate(alone)).all()


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "gaussian_blur", "pixelate"]
)
def test_an_even_image_stays_even(name: str) -> None:
    x = np.full((1, 3, 32, 32), 100 / 255)
    for severity in (1, 5):
        assert np.allclose(corrupted(x, name, severity, generators()), x)


def test_saturation_needs_colors() -> None:
    with pytest.raises(RobustCliError, match=r"saturate: takes color images \(3 channels\), not 1"):
        corrupted(photo(1), "saturate", 1, generators())


def test_accuracies_are_those_of_the_corrupted_images() -> None:
    model = linear_net(3 * 16 * 16, 2).eval()
    x = torch.from_numpy(photo(3, 16, 16, 10)).float()
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = 1 - y[0]
    kinds, severities = ("gaussian_noise", "contrast", "saturate"), (5, 2)
    numbers = torch.arange(20, 30)
    found = Corruptions(kinds=kinds, severities=severities, batch_size=4)(
        model, x, y, ThreatModel("linf", Fraction(1, 10)), IndexedNoise(6, numbers)
    )
    cells = []
    for row, kind in zip(found["rows"], kinds, strict=True):
        assert row["kind"] == kind
        for severity in (2, 5):
            sources = [
                np.random.default_rng(derive(6, "corruption", kind, severity, number)) for number in range(20, 30)
            ]
            changed = torch.from_numpy(corrupted(x.double().numpy(), kind, severity, sources)).float()
            with torch.no_grad():
                cells.append(float((model(changed).argmax(1) == y).double().mean()))
            assert row[f"severity_{severity}_accuracy"] == cells[-1]
        assert row["mean_accuracy"] == pytest.approx(np.mean(cells[-2:]))
    assert found["mean_accuracy"] == pytest.approx(np.mean(cells))
    assert len(set(cells)) > 1


def test_by_default_all_kinds_count_but_the_further_ones() -> None:
    model, x, y = linear_net(64).eval(), images(2), torch.zeros(2, dtype=torch.int64)
    noise = IndexedNoise(0, torch.arange(2))
    rows = Corruptions(severities=(1,))(model, x, y, ThreatModel("linf", Fraction(0)), noise)["rows"]
    # Saturation needs color images, so it is not among them.
    assert [row["kind"] for row in rows] == list(KINDS)[:14]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kinds": ("gausian_noise",)}, "there is no 'gausian_noise'; did you mean 'gaussian_noise'"),
        ({"kinds": ("frost",)}, "there is no 'frost'"),
        ({"severities": (6,)}, "severities: expected one or more, from 1 to 5"),
        ({"severities": ()}, "severities: expected one or more, from 1 to 5"),
    ],
)
def test_what_is_not_there_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(RobustCliError, match=told):
        Corruptions(**settings)
