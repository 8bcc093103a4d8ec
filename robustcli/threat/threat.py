"""The threat model: the geometry of every norm and of the pixel range [0, 1].

No other module depends on the norm. Training and evaluation use the same object.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustcli.errors import RobustCliError
from robustcli.registry.types import Norm, exact_text
from robustcli.threat.noise import Noise

# Tolerance in units in the last place: single precision loses a few between projecting and measuring.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6
# Share of the coordinates that one l1 step moves; SLIDE (Tramer and Boneh, NeurIPS 2019) uses 1 %.
_L1_SHARE = 0.01


@dataclass(frozen=True)
class ThreatModel:
    """All images within `eps` of x in `norm`, inside the pixel box.

    Args:
        norm: "linf", "l2" or "l1", over all pixels and channels of one image.
        eps: radius, exact; pixels of [0, 1] for linf, length for l2, sum for l1.
    """

    norm: Norm
    eps: Fraction

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2", "l1"):
            raise RobustCliError(f"threat.norm: '{self.norm}' is not one of linf, l2, l1")
        object.__setattr__(self, "eps", Fraction(self.eps))
        if self.eps < 0:
            raise RobustCliError(f"threat.eps: {self.eps} is negative")
        if self.norm == "linf" and self.eps > 1:
            raise RobustCliError(f"threat.eps: {self.eps} is larger than the pixel range [0, 1]; write {self.eps}/255")

    def __str__(self) -> str:
        return f"{self.norm} {exact_text(self.eps)}"

    @property
    def radius(self) -> float:
        """eps as a float."""
        return float(self.eps)

    def require_norm(self, attack: str, *known: Norm) -> None:
        """Raise if the norm is not one that an attack supports.

        Raises:
            RobustCliError: the norm is not supported.
        """
        if self.norm not in known:
            raise RobustCliError(f"attack {attack} supports only {' and '.join(known)}; the threat is {self.norm}")

    def scaled(self, share: float) -> "ThreatModel":
        """The same threat model with its radius multiplied by `share`, for a warm-up of eps."""
        return self if share >= 1 else ThreatModel(self.norm, self.eps * Fraction(share))

    def widened(self, factor: int) -> "ThreatModel":
        """The same threat model with its radius multiplied by `factor`; for linf at most 1, which covers [0, 1]."""
        eps = self.eps * factor
        return ThreatModel(self.norm, min(eps, Fraction(1)) if self.norm == "linf" else eps)

    @property
    def has_sparse_steps(self) -> bool:
        """Whether steepest ascent changes few coordinates, so that attacks also choose how many."""
        return self.norm == "l1"

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation: (n, ...) -> (n,)."""
        flat = delta.flatten(1)
        if self.norm == "linf":
            return flat.abs().amax(1)
        length: Tensor = torch.linalg.vector_norm(flat, ord=2 if self.norm == "l2" else 1, dim=1)
        return length

    def distortion(self, delta: Tensor) -> Tensor:
        """Euclidean length of each perturbation divided by the largest in the ball: (n, ...) -> (n,), in [0, 1].

        For radius 0 it is 1, as for an attack that fills its ball.
        """
        flat = delta.flatten(1)
        if not self.radius:
            return torch.ones_like(flat[:, 0])
        greatest = self.radius * (flat.shape[1] ** 0.5 if self.norm == "linf" else 1)
        ratio: Tensor = torch.linalg.vector_norm(flat, dim=1) / greatest
        return ratio

    def gap(self, grad: Tensor, x_adv: Tensor, x: Tensor) -> Tensor:
        """How much a linear function can still rise inside the ball: max over z of <z - x_adv, grad>, (n,).

        It is not negative inside the ball, and 0 exactly at a maximum; the pixel range is ignored.
        """
        slope = grad.flatten(1)
        if self.norm == "linf":
            steepest = slope.abs().sum(1)
        elif self.norm == "l2":
            steepest = torch.linalg.vector_norm(slope, dim=1)
        else:
            steepest = slope.abs().amax(1)
        return self.radius * steepest - ((x_adv - x).flatten(1) * slope).sum(1)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Project x_adv onto the threat set around x: (n, c, h, w). For linf and l1 it is the nearest point.

        For l2, project onto the ball first and clip second. Clipping moves every pixel towards x, so the result stays
        in the ball, but it need not be the nearest point of the intersection.
        """
        if self.norm == "linf":
            return torch.clamp(x_adv, x - self.radius, x + self.radius).clamp_(0, 1)
        delta = x_adv - x
        if self.norm == "l2":
            return (x + self.bound(delta, self.radius)).clamp_(0, 1)
        up = delta.sign().clamp_min_(0)
        # 1 - x where delta goes up, x elsewhere; on a CPU faster than a choice by a mask.
        room = ((up - x) * (2 * up - 1)).flatten(1)
        return (x + _project_l1(delta, room, self.radius)).clamp_(0, 1)

    def bound(self, delta: Tensor, length: float) -> Tensor:
        """The nearest perturbation no longer than `length`, ignoring the pixel range."""
        if self.norm == "linf":
            return delta.clamp(-length, length)
        if self.norm == "l2":
            shrink = length / self.size(delta).clamp_min(torch.finfo(delta.dtype).tiny)
            return delta * per_example(shrink.clamp_max(1), delta)
        return _project_l1(delta, torch.full_like(delta, torch.inf).flatten(1), length)

    def ascent(self, grad: Tensor, x_adv: Tensor, length: float) -> Tensor:
        if self.norm == "linf":
            return length * grad.sign()
        if self.norm == "l2":
            return length * (grad / per_example(self.size(grad).clamp_min(torch.finfo(grad.dtype).tiny), grad))
        room = torch.where(grad > 0, 1 - x_adv, x_adv).flatten(1)
        count = max(1, round(_L1_SHARE * room.shape[1]))
        strength, order = grad.abs().flatten(1).sort(1, descending=True)
        most = room.gather(1, order).clamp(0, length / count).masked_fill_(strength == 0, 0)
        left = length - (most.cumsum(1) - most)
        taken = torch.minimum(most, left.clamp_min(0))
        return torch.zeros_like(room).scatter_(1, order, taken).view_as(grad) * grad.sign()

    def sparse_ascent(self, grad: Tensor, share: Tensor, length: Tensor) -> Tensor:
        """A step of l1 length `length` (n,), spread over the share (n,) of coordinates with the largest gradient.

        Reference: Croce and Hein, ICML 2021, section 4.
        """
        size = grad.abs().flatten(1)
        pixels = size.shape[1]
        first = ((1 - share) * pixels).clamp(0, pixels - 1).long()
        least = size.sort(1).values.gather(1, first[:, None])
        sign = grad.sign().flatten(1).masked_fill_(size < least, 0)
        count = sign.abs().sum(1, keepdim=True)
        return (length[:, None] * sign / count.clamp_min(1)).view_as(grad)

    def sample(self, x: Tensor, rng: Noise) -> Tensor:
        """A random point of the threat set around each x: `noise`, clipped to [0, 1]."""
        return self.project(x + self.noise(x, rng), x)

    def noise(self, x: Tensor, rng: Noise) -> Tensor:
        """A random perturbation of each x, ignoring the pixel range.

        linf: uniform in the cube. l2 and l1: a random direction, at a radius uniform in [0, eps] (the
        convention of Rice et al., 2020; not uniform in volume).
        """
        if self.norm == "linf":
            return (2 * rng.uniform(x) - 1) * self.radius
        direction = rng.normal(x)
        if self.norm == "l1":
            # Exponential sizes make the direction uniform on the l1 sphere.
            direction = -(1 - rng.uniform(x)).log() * direction.sign()
        length = self.radius * rng.uniform(x[:, :1, :1, :1]).flatten()
        return direction * per_example(length / self.size(direction).clamp_min(1e-12), x)

    def sample_surface(self, x: Tensor, rng: Noise) -> Tensor:
        """A random point of the surface of the ball around each x, clipped to [0, 1].

        linf: uniform noise, stretched until its largest pixel is eps. l2: a random direction. l1: normal noise,
        projected, so that few coordinates are left.
        """
        if self.norm == "l1":
            return self.project(x + rng.normal(x), x)
        direction = 2 * rng.uniform(x) - 1 if self.norm == "linf" else rng.normal(x)
        length = self.size(direction).clamp_min(1e-12)
        return self.project(x + self.radius * (direction / per_example(length, x)), x)

    def surface(self, delta: Tensor, x: Tensor) -> Tensor:
        """The point at distance eps in direction delta, clipped to [0, 1].

        For l1, a longer delta is projected instead, which uses on other pixels what clipping removes.
        """
        # Not the smallest number: a large radius divided by it is infinite, and no perturbation would become NaN.
        stretch = self.radius / self.size(delta).clamp_min(1e-12)
        if self.norm == "l1":
            return self.project(x + delta * per_example(stretch.clamp_min(1), x), x)
        return (x + delta * per_example(stretch, x)).clamp_(0, 1)

    def shrunk(self, x_adv: Tensor, x: Tensor, share: Tensor) -> Tensor:
        """Move x_adv to a share (n,) of its distance from x: on a line, or for linf by clipping pixels."""
        delta = x_adv - x
        if self.norm == "linf":
            limit = per_example(share * self.size(delta), delta)
            return x + torch.clamp(delta, -limit, limit)
        return x + per_example(share, delta) * delta

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Mask of the images in the threat set around x, up to rounding: bool (n,)."""
        # Half a unit in the last place of a number near 1, in every pixel.
        rounding = self.size(torch.full_like(x[:1], 2**-25 * 2))
        limit = self.radius * (1 + _RELATIVE) + _ABSOLUTE + rounding
        is_near = self.size(x_adv - x) <= limit
        flat = x_adv.flatten(1)
        # Comparisons with NaN are false, so an image with a NaN pixel is outside.
        return is_near & (flat.amin(1) >= -_ABSOLUTE) & (flat.amax(1) <= 1 + _ABSOLUTE)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Return values (n, ...) with trailing axes of length 1, so that they broadcast over the pixels of `like`."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))


def _project_l1(delta: Tensor, room: Tensor, radius: float) -> Tensor:
    """Nearest point of the l1 ball inside the box: shrink all magnitudes by one threshold, then clip.

    The sum falls as the threshold grows, so the threshold is found by bisection. The upper end is taken, which never
    exceeds the radius (Croce and Hein, ICML 2021, section 3).

    Args:
        room: (n, d), how far each pixel can move in the direction of its delta within [0, 1].
    """
    size = delta.abs().flatten(1)
    low = torch.zeros_like(size[:, 0])
    high = size.amax(1)
    is_inside = torch.minimum(size, room).sum(1) <= radius
    for _ in range(40):
        middle = (low + high) / 2
        left = torch.minimum((size - middle[:, None]).clamp_min(0), room).sum(1)
        is_too_long = left > radius
        low, high = torch.where(is_too_long, middle, low), torch.where(is_too_long, high, middle)
    threshold = torch.where(is_inside, torch.zeros_like(high), high)
    kept = torch.minimum((size - threshold[:, None]).clamp_min(0), room)
    return kept.view_as(delta) * delta.sign()
