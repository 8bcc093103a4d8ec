"""What an attack computes, and how long the passes of a network take for any number of images."""

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from robustcli.evaluation.passes import run_pass
from robustcli.measuring.timing import wall

# Share of a batch whose passes are timed next to those of the whole batch, and seconds that each is repeated for.
_PART = 8
_REPEATED = 0.2


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an attack computes, in total or for each image.

    Args:
        forwards, gradients: images in forward passes and in gradients.
        forward_calls, gradient_calls: passes of any number of images, each of which takes some time by itself.
        others: seconds of everything but passes.
    """

    forwards: float = 0.0
    gradients: float = 0.0
    forward_calls: float = 0.0
    gradient_calls: float = 0.0
    others: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __mul__(self, factor: float) -> "Work":
        return Work(**{name: factor * value for name, value in vars(self).items()})

    @property
    def passes(self) -> float:
        """Images in passes of both kinds."""
        return self.forwards + self.gradients


@dataclass(frozen=True)
class Line:
    """Seconds of a pass: for the call, and for each image in it."""

    call: float
    image: float

    @classmethod
    def through(cls, few: int, seconds_of_few: float, many: int, seconds_of_many: float) -> "Line":
        """Return the line through two measurements, or through the second and zero if the call would cost nothing."""
        slope = (seconds_of_many - seconds_of_few) / (many - few) if many > few else 0.0
        call = seconds_of_many - many * slope
        return cls(call, slope) if slope > 0 and call > 0 else cls(0.0, seconds_of_many / many)


@dataclass(frozen=True)
class PassTimes:
    """Seconds of forward passes and gradients of a network."""

    forward: Line
    gradient: Line

    @classmethod
    def measured(cls, network: nn.Module, x: Tensor) -> "PassTimes":
        """Time passes of a batch and of a part of it.

        Args:
            network: network in eval mode, whose weights need no gradient.
            x: images (n, c, h, w) of one batch.
        """
        many, few = len(x), max(1, len(x) // _PART)

        def line(*, has_gradient: bool) -> Line:
            of_few, of_many = (_seconds(network, x[:count], has_gradient=has_gradient) for count in (few, many))
            return Line.through(few, of_few, many, of_many)

        forwards, of_both = line(has_gradient=False), line(has_gradient=True)
        gradients = Line(of_both.call - forwards.call, of_both.image - forwards.image)
        return cls(forwards, gradients)

    def seconds(self, work: Work) -> float:
        """Return the seconds of passes and everything else."""
        passes = (
            work.forward_calls * self.forward.call
            + work.forwards * self.forward.image
            + work.gradient_calls * self.gradient.call
            + work.gradients * self.gradient.image
        )
        return max(0.0, passes + work.others)

    def per_image(self, images: int) -> float:
        """Return the seconds of a pass of one image of a batch, forwards or backwards."""
        return (self.forward.call + self.gradient.call) / (2 * images) + (self.forward.image + self.gradient.image) / 2


NO_TIMES = PassTimes(Line(0.0, 0.0), Line(0.0, 0.0))


def _seconds(network: nn.Module, x: Tensor, *, has_gradient: bool) -> float:
    """Return the mean seconds of a pass, after a first one that allocates memory and chooses kernels."""
    run = partial(run_pass, network, x, has_gradient=has_gradient)
    run()
    start = wall(x.device)
    run()
    repeats = max(1, math.ceil(_REPEATED / max(wall(x.device) - start, 1e-6)))
    start = wall(x.device)
    for _ in range(repeats):
        run()
    return (wall(x.device) - start) / repeats
