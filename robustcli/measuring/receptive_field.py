"""Receptive fields of the pixels of a map, and how the operations of a network change them."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

Grid = tuple[int, int]


@dataclass(frozen=True)
class Sight:
    """Receptive field of a pixel of a map.

    Args:
        side: side of a square of pixels; None: the whole image.
        pace: distance to the receptive field of the neighbor, in pixels.
        grid: height and width of the map, for any layout of its tensor.
    """

    side: float | None
    pace: float
    grid: Grid

    def through(self, kernel: int, stride: int, dilation: int) -> "Sight":
        side = None if self.side is None else self.side + (kernel - 1) * dilation * self.pace
        return replace(self, side=side, pace=self.pace * stride)

    def merged(self, other: "Sight") -> "Sight":
        side = None if self.side is None or other.side is None else max(self.side, other.side)
        return Sight(side, max(self.pace, other.pace), max(self.grid, other.grid, key=math.prod))


_aten = torch.ops.aten
_POOLS = (_aten.max_pool2d_with_indices, _aten.avg_pool2d)
_NORMS = (_aten.native_batch_norm, _aten._native_batch_norm_legit_no_training, _aten.native_group_norm)
LINEAR = (_aten.mm, _aten.addmm)
# Positions of the multiplied operands; an addend may come first.
FACTORS = {_aten.convolution: (0, 1), _aten.mm: (0, 1), _aten.bmm: (0, 1), _aten.addmm: (1, 2), _aten.baddbmm: (1, 2)}
# Operations that read all pixels of a map; a batch norm in evaluation does not.
_WHOLE = (
    _aten.mean,
    _aten._adaptive_avg_pool2d,
    _aten.bmm,
    _aten.baddbmm,
    _aten.native_group_norm,
    _aten._fft_r2c,
)


def weights_of(part: Tensor) -> tuple[nn.Parameter, ...]:
    """Return the weights that a tensor consists of, if it depends on weights only."""
    return (part,) if isinstance(part, nn.Parameter) else getattr(part, "weights", ())


def sides(map_: Tensor) -> Grid:
    """Return height and width of a map."""
    return (map_.shape[-2], map_.shape[-1])


def sight_after(operation: Any, args: Any, out: Tensor, sight: Sight) -> Sight:
    """Return the receptive field of the output of an operation, given that of its inputs."""
    if operation is _aten.convolution:
        # The last two axes are height and width, also for clips.
        return replace(sight.through(args[1].shape[-1], args[3][-1], args[5][-1]), grid=sides(out))
    if operation in _POOLS:
        kernel = args[1][0]
        stride = args[2][0] if len(args) > 2 and args[2] else kernel
        return replace(sight.through(kernel, stride, 1), grid=sides(out))
    if operation is _aten.upsample_nearest2d:
        return Sight(sight.side, sight.pace * args[0].shape[2] / args[1][0], sides(out))
    if operation in _WHOLE:
        sight = replace(sight, side=None)
    if operation in (_aten.mean, _aten._adaptive_avg_pool2d):
        return replace(sight, grid=sides(out) if out.dim() > 3 else (1, 1))
    if operation in _NORMS and out.dim() > 3:
        return replace(sight, grid=sides(out))
    if operation is _aten.slice:
        return replace(sight, grid=_cut(sight.grid, args[0], out))
    if operation in LINEAR:
        factors = [args[i] for i in FACTORS[operation]]
        return _by_rows(sight, len(out), any(weights_of(factor) for factor in factors))
    if operation is _aten.native_layer_norm and out.numel() // math.prod(args[1]) < math.prod(sight.grid):
        # A single token, such as the class token.
        return replace(sight, grid=(1, 1))
    return sight


def _cut(grid: Grid, whole: Tensor, out: Tensor) -> Grid:
    """Return the grid of a slice of a map with channels first or last; for other slices, the grid unchanged."""
    for rows, columns in ((2, 3), (1, 2)):
        if whole.dim() == 4 and (whole.shape[rows], whole.shape[columns]) == grid:
            return (out.shape[rows], out.shape[columns])
    return grid


def _by_rows(sight: Sight, rows: int, is_learned: bool) -> Sight:
    """Return the receptive field after a matrix product: linear layers on single pixels or tokens do not mix them."""
    if not is_learned:
        return replace(sight, side=None)
    return sight if rows >= math.prod(sight.grid) else replace(sight, side=None, grid=(1, 1))
