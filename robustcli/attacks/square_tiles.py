"""Random changes that the Square attack proposes: new contents for a window of the image.

linf: the pixels of one window go to x + eps or x - eps, with one sign per channel. l2 and l1: the perturbation of one
window is moved to another, where a bump is added.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from robustcli.attacks.gradient import Rows, picked
from robustcli.registry.types import Norm
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

_ORDER = {"l2": 2, "l1": 1}
# Exponent of the decay of a bump: ring k adds (k + 1) ** -fading.
_FADING = {"l2": 2, "l1": 4}


def numbers_per_proposal(norm: Norm, channels: int) -> int:
    """Number of uniform numbers that one proposal for one image needs."""
    return channels + (2 if norm == "linf" else 5)


def window_side(share: float, height: int, width: int, norm: Norm) -> int:
    """Side in pixels of a window that covers a share of the image, limited to the image."""
    side, most = round(math.sqrt(share * height * width)), min(height, width)
    if norm == "linf":
        return min(max(side, 1), most)
    # Odd, so that a bump has a centre; | 1 makes an even number odd.
    return min(max(side, 3) | 1, most if most % 2 else most - 1) if most > 1 else 1


def first_points(x: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
    """Starting points: vertical stripes for linf, a chequerboard of bumps for l2 and l1."""
    count, channels, height, width = x.shape
    if threat.norm == "linf":
        return threat.surface(_signs(rng.uniform(x[:, :, :1])), x)
    side = max(1, min(height, width) // 5)
    rows, columns = height // side, width // side
    tile = _bump(side, threat.norm, x.dtype, x.device)
    grid = x.new_empty((count, channels, rows, columns))
    is_turned = rng.uniform(grid[:, :1])[..., None, None] < 0.5
    tiles = torch.where(is_turned, tile.T, tile) * _signs(rng.uniform(grid))[..., None, None]
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    delta = torch.zeros_like(x)
    delta[:, :, top : top + rows * side, left : left + columns * side] = tiles.transpose(3, 4).reshape(
        count, channels, rows * side, columns * side
    )
    return threat.surface(delta, x)


class Proposals:
    """Best points with new contents in one window, for some queries of every image.

    Args:
        x: (n, c, h, w) clean images.
        numbers: (n, queries, `numbers_per_proposal`), uniform in [0, 1).
        sides: sides of the windows in pixels, by query; they never grow.
    """

    def __init__(self, x: Tensor, threat: ThreatModel, numbers: Tensor, sides: Sequence[int]) -> None:
        self._x, self._threat, self._numbers, self._sides = x, threat, numbers, sides
        if threat.norm == "linf":
            # All windows at once: one by one they would take as long as a pass of a small network. As numbers, because
            # a choice by a mask takes several times as long.
            side = torch.tensor(sides, device=x.device)
            self._rows = _covered(numbers[:, :, 0], side, x.shape[2]).to(x.dtype)
            self._columns = _covered(numbers[:, :, 1], side, x.shape[3]).to(x.dtype)
            self._moves = threat.radius * _signs(numbers[:, :, 2:]).to(x.dtype)[..., None, None]

    def at(self, images: Rows, queries: Tensor | int, best: Tensor) -> Tensor:
        """Propose a point for each of some images.

        Args:
            images: indices of the images; an image may occur with several queries.
            queries: (m,) on the CPU, or one query for all these images.
            best: (m, c, h, w) their best points, in the threat set.
        """
        x, place = picked(self._x, images), queries if isinstance(queries, int) else queries.to(self._x.device)
        if self._threat.norm == "linf":
            inside = self._rows[images, place][:, None, :, None] * self._columns[images, place][:, None, None, :]
            # The pixels of the window go to x + eps or x - eps.
            return torch.lerp(best, (x + self._moves[images, place]).clamp_(0, 1), inside)
        numbers = self._numbers[images, place]
        if isinstance(queries, int):
            return _moved(best, x, self._threat, numbers, self._sides[queries])
        points, sides = torch.empty_like(best), torch.tensor(self._sides)[queries]
        for side in sorted(set(sides.tolist())):
            row = (sides == side).nonzero().flatten().to(x.device)
            points[row] = _moved(best[row], x[row], self._threat, numbers[row], side)
        return points


def _covered(share: Tensor, side: Tensor, length: int) -> Tensor:
    """Mask (n, queries, length) of the rows or columns of windows, from their positions (n, queries) in [0, 1).

    All positions where a window fits are equally likely.
    """
    place = torch.arange(length, device=share.device) - (share * (length - side + 1)).long()[:, :, None]
    return (place >= 0) & (place < side[:, None])


# Position of a window as two maps, (n, h) and (n, w): row and column of each pixel in the window. 0 stands for all
# pixels before it, `side` + 1 for all after it.
_Window = tuple[Tensor, Tensor]


def _window(down: Tensor, across: Tensor, side: int, x: Tensor) -> _Window:
    """Draw a window; all positions where it fits are equally likely."""
    height, width = x.shape[-2:]
    top, left = (down * (height - side + 1)).long(), (across * (width - side + 1)).long()
    rows = torch.arange(1, height + 1, device=x.device) - top[:, None]
    columns = torch.arange(1, width + 1, device=x.device) - left[:, None]
    return rows.clamp_(0, side + 1), columns.clamp_(0, side + 1)


def _is_inside(window: _Window, side: int) -> Tensor:
    """Mask (n, 1, h, w) of the pixels in a window."""
    rows, columns = ((place > 0) & (place <= side) for place in window)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _moved(best: Tensor, x: Tensor, threat: ThreatModel, numbers: Tensor, side: int) -> Tensor:
    """Move the perturbation of one window to another and add a bump there, for l2 and l1.

    The new window gets the length of both windows and the unused length.
    """
    norm, channels = threat.norm, x.shape[1]
    order, delta = _ORDER[norm], best - x
    here, there = (_window(numbers[:, first], numbers[:, first + 1], side, x) for first in (0, 2))
    is_turned = numbers[:, 4] < 0.5
    signs = _signs(numbers[:, -channels:])[:, :, None, None].to(x.dtype)
    is_here = _is_inside(here, side)
    is_either = is_here | _is_inside(there, side)
    bump = _bump(side, norm, delta.dtype, delta.device)
    framed = torch.nn.functional.pad(torch.stack([bump, bump.T]), (1, 1, 1, 1))
    placed = framed[is_turned.long()[:, None, None], here[0][:, :, None], here[1][:, None, :]][:, None]
    old = delta.masked_fill(~is_here, 0)
    fresh = placed * signs + old / _size_by_channel(old, order)
    unused = (threat.radius**order - threat.size(delta) ** order).clamp_min(0)[:, None, None, None] / channels
    length = (unused + _size_by_channel(delta.masked_fill(~is_either, 0), order) ** order) ** (1 / order)
    if norm == "l1":
        # If this is longer than the radius allows, the projection shrinks the whole perturbation.
        length = length * channels
    fresh = fresh * (length / _size_by_channel(fresh, order))
    return threat.surface(torch.where(is_here, fresh, delta.masked_fill(is_either, 0)), x)


def _size_by_channel(delta: Tensor, order: int) -> Tensor:
    """Length of each channel, never 0: (n, c, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(delta, ord=order, dim=(2, 3), keepdim=True)
    return length.clamp_min(1e-12)


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


# Cached, because a search needs the same few thousands of times.
@lru_cache(maxsize=32)
def _bump(side: int, norm: Norm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A hill above a pit, (side, side), of length 1: each is a stack of centred squares and rectangles."""

    def hill(height: int, width: int) -> Tensor:
        down = (torch.arange(height, device=device) - height // 2).abs()
        across = (torch.arange(width, device=device) - width // 2).abs()
        last = max(height // 2, width // 2)
        layers = torch.arange(1, last + 2, dtype=dtype, device=device) ** -_FADING[norm]
        # A pixel on ring m lies on layers m and beyond.
        heights = layers.flip(0).cumsum(0).flip(0)[torch.maximum(down[:, None], across)]
        length: Tensor = torch.linalg.vector_norm(heights.flatten(), ord=_ORDER[norm])
        return heights / length.clamp_min(1e-12)

    upper = side // 2
    bump = torch.cat([hill(upper, side), -hill(side - upper, side)])
    length: Tensor = torch.linalg.vector_norm(bump.flatten(), ord=_ORDER[norm])
    return bump / length
