"""Distance from an image to a hyperplane, and the shortest way to it inside [0, 1], in every norm.

A plane is given relative to the image: `weight` (n, c, h, w) is its normal and `gap` (n,) the value of its linear
function at the image, so a displacement reaches the plane exactly if <weight, displacement> = -gap.
"""

from itertools import count

import torch
from torch import Tensor

from robustcli.registry.types import Norm

_DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
# Newton iterations between two checks for convergence. On a GPU a check waits for the device; iterations after
# convergence change nothing.
_PASSES = {"cpu": 1, "cuda": 8}
# Coordinates that are tried first in l1, and the factor by which their number grows if they do not suffice.
_FIRST, _MORE = 32, 8


def plane_distance(gap: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """Distance to the plane, ignoring [0, 1]: |gap| over the dual norm of the normal, (n,)."""
    steepness: Tensor = torch.linalg.vector_norm(weight.flatten(1), ord=_DUAL[norm], dim=1)
    distance: Tensor = gap.abs() / steepness.clamp_min(1e-12)
    return distance


def towards_plane(x: Tensor, gap: Tensor, weight: Tensor, norm: Norm) -> Tensor:
    """The shortest displacement from x to the plane for which x + displacement stays in [0, 1]: (n, c, h, w).

    If the plane does not meet the box, the displacement to the point of the box nearest to the plane: every pixel with
    a nonzero weight moves to its bound.

    Reference: Croce and Hein, ICML 2020, section 2.1; solved here without sorting.
    """
    slope = weight.flatten(1)
    # Relative to the largest weight of each image: squares of small gradients would vanish.
    steepest = slope.abs().amax(1).clamp_min(torch.finfo(slope.dtype).tiny)
    rise, need = slope.abs() / steepest[:, None], gap.abs() / steepest
    sign = torch.where(gap > 0, -1, 1).to(slope.dtype)[:, None] * slope.sign()
    pixels = x.flatten(1)
    room = torch.where(sign > 0, 1 - pixels, pixels).masked_fill_(sign == 0, 0)
    if norm == "l1":
        sizes = _steepest_first(rise, room, need)
    else:
        sizes = _all_at_once(rise, rise if norm == "l2" else torch.ones_like(rise), room, need)
    return (sign * sizes).view_as(x)


def _all_at_once(rise: Tensor, speed: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Sizes min(time * speed, room) at the time when sum(rise * sizes) reaches `need`, by Newton's method.

    This sum is a concave, piecewise linear function of the time. Each iteration solves the current linear piece, which
    lies above the function, so the time grows and never passes the solution. If no further coordinate is used up, the
    solution is found. There are at most as many iterations as coordinates, and in practice three to eight.
    """
    gain, pace = rise * room, rise * speed
    is_full = room <= 0
    for number in count(1):
        left = need - gain.masked_fill(~is_full, 0).sum(1)
        # Avoids 0 / 0: when all coordinates are used up, the time does not matter.
        time = left.clamp_min(0) / pace.masked_fill(is_full, 0).sum(1).clamp_min(torch.finfo(rise.dtype).tiny)
        sizes = torch.where(is_full, room, time[:, None] * speed)
        is_filled = sizes >= room
        if number % _PASSES[rise.device.type] == 0 and torch.equal(is_filled | is_full, is_full):
            break
        is_full |= is_filled
    return sizes


def _steepest_first(rise: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Sizes that use up the room of the steepest coordinates, the last one in part, until `need` is reached.

    Usually a few coordinates suffice, and finding them costs far less than sorting all; their number grows until they
    do.
    """
    is_out_of_reach = (rise * room).sum(1) <= need
    # A coordinate without room would displace one that has some.
    usable = rise.masked_fill(room <= 0, 0)
    many = min(_FIRST, rise.shape[1])
    while True:
        strength, order = usable.topk(many, dim=1)
        most = room.gather(1, order)
        reached = (strength * most).cumsum(1)
        if many == rise.shape[1] or bool(((reached[:, -1] >= need) | is_out_of_reach).all()):
            break
        many = min(_MORE * many, rise.shape[1])
    left = (need[:, None] - reached + strength * most).clamp_min(0)
    taken = torch.minimum(most, left / strength.clamp_min(torch.finfo(rise.dtype).tiny))
    sizes = torch.zeros_like(room).scatter_(1, order, taken)
    return torch.where(is_out_of_reach[:, None], room, sizes)
