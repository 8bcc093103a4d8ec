"""Random changes that the Square attack proposes: new contents for a window of the image.

linf: the pixels of one window go to x + eps or x - eps, with one sign per channel. l2 and l1: the perturbation of one
window is moved to another, where a bump is added.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from robustcli.attacks.gradient import picked
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
    # Odd, so that a bump has a center; | 1 makes an even number odd.
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
        self._x, self._threat, self._numbers, self._sides = x.contiguous(), threat, numbers, sides
        if threat.norm == "linf":
            # All windows at once: one by one they would take as long as a pass of a small network.
            self._pixels = x[0].numel() if len(x) else 0
            first = torch.arange(len(x), device=x.device)[:, None] * self._pixels
            side = torch.tensor(sides, device=x.device)
            self._corners = (first + _corners(numbers, side, x.shape[2], x.shape[3])).flatten()
            self._moves = (threat.radius * _signs(numbers[:, :, 2:]).to(x.dtype)).flatten(0, 1)

    def at(self, images: Tensor, queries: Tensor | int, best: Tensor) -> Tensor:
        """Propose a point for each of some images.

        Args:
            images: (m,) indices of the images; an image may occur with several queries.
            queries: (m,) on the CPU, or one query for all these images.
            best: (m, c, h, w) their best points, in the threat set.
        """
        if self._threat.norm == "linf":
            return self._written(
                best.clone(memory_format=torch.contiguous_format), images, *self._windows(images, queries)
            )
        x, numbers = picked(self._x, images), self._numbers[images, _on(queries, images)]
        if isinstance(queries, int):
            return _moved(best, x, self._threat, numbers, self._sides[queries])
        points, sides = torch.empty_like(best), torch.tensor(self._sides)[queries]
        for side in sorted(set(sides.tolist())):
            row = (sides == side).nonzero().flatten().to(x.device)
            points[row] = _moved(best[row], x[row], self._threat, numbers[row], side)
        return points

    def changed(self, images: Tensor, queries: Tensor | int, best: Tensor) -> tuple[Tensor, Tensor]:
        """Propose points as `at` does, and leave out those that are equal to the best ones.

        For linf it computes only pixels in windows. For l2 and l1, where equal ones are rare, it leaves out none.

        Args:
            best: (n, c, h, w) best points of all images.

        Returns:
            The proposals that are kept, as indices (k,) into `images`, and their points (k, c, h, w).
        """
        if self._threat.norm != "linf":
            return torch.arange(len(images), device=images.device), self.at(images, queries, picked(best, images))
        places, contents = self._windows(images, queries)
        before = best.view(-1).index_select(0, places.view(-1)).view_as(contents)
        row = (contents != before).any(1).nonzero().flatten()
        kept = picked(images, row)
        return row, self._written(picked(best, kept), kept, picked(places, row), picked(contents, row))

    def _windows(self, images: Tensor, queries: Tensor | int) -> tuple[Tensor, Tensor]:
        """Pixels of the windows, as indices into all values of all images, and their new values: (m, pixels) each.

        The pixels go to x + eps or x - eps. The smaller ones of several windows name some pixels repeatedly.
        """
        row = images * len(self._sides) + _on(queries, images)
        places = picked(self._corners, row)[:, None] + self._grid(queries)
        moves = picked(self._moves, row)[:, :, None]
        contents = self._x.view(-1).index_select(0, places.view(-1)).view(len(row), moves.shape[1], -1)
        return places, (contents + moves).clamp_(0, 1).flatten(1)

    def _grid(self, queries: Tensor | int) -> Tensor:
        """Pixels of windows of all channels, relative to the corner: (pixels,), or (m, pixels) for unequal sides."""
        channels, height, width = self._x.shape[1:]
        device = self._x.device
        if isinstance(queries, int) or self._sides[0] == self._sides[-1]:
            side = self._sides[queries if isinstance(queries, int) else 0]
            return _square(side, channels, height, width, device)
        sides = torch.tensor(self._sides)[queries]
        largest = int(sides.max())
        along = torch.minimum(torch.arange(largest), sides[:, None] - 1).to(device)
        pixels = (along[:, :, None] * width + along[:, None]).flatten(1)
        channel = torch.arange(channels, device=device) * (height * width)
        return (channel[:, None] + pixels[:, None]).flatten(1)

    def _written(self, points: Tensor, images: Tensor, places: Tensor, contents: Tensor) -> Tensor:
        """Write the contents of windows into points (m, c, h, w), in place."""
        inside = places - (images * self._pixels)[:, None]
        points.view(len(points), self._pixels).scatter_(1, inside, contents)
        return points


def _on(queries: Tensor | int, images: Tensor) -> Tensor | int:
    """Return queries on the device of images."""
    return queries if isinstance(queries, int) else queries.to(images.device)


def _corners(numbers: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """First pixels (n, queries) of windows; all positions where a window fits are equally likely.

    Args:
        numbers: (n, queries, 2 or more), uniform in [0, 1).
        side: (queries,).
    """
    top, left = ((numbers[:, :, axis] * (length - side + 1)).long() for axis, length in ((0, height), (1, width)))
    return top * width + left


# Cached, because a search needs the same few thousands of times.
@lru_cache(maxsize=32)
def _square(side: int, channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Pixels of a window of all channels, relative to its corner: (channels * side * side,)."""
    along = torch.arange(side, device=device)
    channel = torch.arange(channels, device=device) * (height * width)
    return (channel[:, None, None] + along[:, None] * width + along).flatten()


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
    """A hill above a pit, (side, side), of length 1: each is a stack of centered squares and rectangles."""

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
