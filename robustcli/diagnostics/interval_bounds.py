"""Certified accuracy by interval bound propagation."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from robustcli.diagnostics import DIAGNOSTICS
from robustcli.errors import RobustCliError
from robustcli.evaluators.intervals import certified
from robustcli.registry.types import BatchSize, NonNegative
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

_FRACTIONS = (Fraction(1, 16), Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1))


@DIAGNOSTICS.register("interval_bounds", smoke={"radii": (0, 0.001, 0.01)})
@dataclass(frozen=True, kw_only=True)
class IntervalBounds:
    """Lower bound of the robust accuracy: intervals that contain every value of every layer over the threat set.

    Each layer turns intervals of its inputs into intervals that surely contain its outputs. Supported are linear
    layers, convolutions, batch norms, pooling, sums and increasing activations (ReLU, leaky ReLU, softplus, sigmoid,
    tanh, ELU); other layers, such as SiLU or attention, are refused. An image is certified if the lower bound of its
    class's logit exceeds the upper bound of every other logit. Intervals grow from layer to layer, so the bound is
    useful for small networks, networks trained for it, and small radii; otherwise it is 0, which means nothing. The
    bound is computed for linf; the l2 and l1 sets of the same radius are subsets. Rounding errors are not bounded.

    When to use: for a guarantee on small networks; next to attacks, which bound robustness from above.

    First setting: the defaults.

    Args:
        radii: in the unit of eps; null means 1/16 to 1 times the threat model's radius.

    Reference: Gowal et al., "Scalable Verified Training for Provably Robust Image Classification", ICCV 2019.
    """

    radii: tuple[NonNegative, ...] | None = None
    batch_size: BatchSize = 100

    def __post_init__(self) -> None:
        if self.radii is not None and not self.radii:
            raise RobustCliError("interval_bounds.radii: the list is empty; expected radii such as [0, 1/255, 8/255]")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        asked = [threat.eps * part for part in _FRACTIONS] if self.radii is None else self.radii
        curve = []
        for radius in sorted({float(radius) for radius in asked}):
            is_certified = certified(model, x, y, radius, self.batch_size)
            curve.append({"eps": radius, "certified_accuracy": float(is_certified.double().mean())})
        return {"curve": curve}
