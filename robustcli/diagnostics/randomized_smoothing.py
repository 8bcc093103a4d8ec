"""Certified accuracy of the network smoothed by Gaussian noise."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustcli.diagnostics import DIAGNOSTICS
from robustcli.errors import RobustCliError
from robustcli.evaluators.smoothing import Smoothing, covering
from robustcli.registry.types import Count, NonNegative, Positive, ProperShare
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

# Multiples of sigma at which the certified accuracy is reported by default.
_MULTIPLES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


@DIAGNOSTICS.register("randomized_smoothing", smoke={"selection": 4, "samples": 40, "alpha": 0.05, "radii": (0, 0.1)})
@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing:
    """Certified l2 accuracy of the smoothed network, which classifies by a vote over Gaussian noise.

    The smoothed network returns the most likely class when noise is added to the image. If this class has probability
    at least p > 1/2, no perturbation shorter than sigma times the p-quantile of the normal distribution changes it.
    A few samples select the class, others bound p from below; each certificate fails with probability at most `alpha`.
    If the bound is at most 1/2, the smoothed network abstains, which counts as wrong. The result is about the smoothed
    network, not the network itself, and is high only for networks trained with such noise. An image is certified for
    the threat model if its radius covers the threat set: eps in l2 and l1, eps times sqrt(number of values) in linf.

    When to use: for a guarantee; attacks bound robustness from above, this bounds it from below.

    First setting: sigma 0.25 and the defaults on 500 images; published tables use 100,000 samples.

    Args:
        sigma: standard deviation of the noise, in pixels of [0, 1]; noisy images are not clipped.
        selection: samples that select the class.
        samples: samples that bound its probability.
        alpha: probability with which a certificate may be wrong.
        radii: l2 radii of the curve; null means 0 to 3 times sigma.
        batch_size: noisy images per forward; changes only memory and speed.

    Reference: Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019.
    """

    sigma: Positive = 0.25
    selection: Count = 100
    samples: Count = 1000
    alpha: ProperShare = 0.001
    radii: tuple[NonNegative, ...] | None = None
    batch_size: Count = 1000

    def __post_init__(self) -> None:
        if self.radii is not None and not self.radii:
            raise RobustCliError("randomized_smoothing.radii: the list is empty; expected radii such as [0, 0.25, 0.5]")

    @property
    def smoothing(self) -> Smoothing:
        return Smoothing(
            sigma=self.sigma,
            selection=self.selection,
            samples=self.samples,
            alpha=self.alpha,
            batch_size=self.batch_size,
        )

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        radii, certified = self.smoothing.radii_of(model, x, y, rng)
        radii_asked = [self.sigma * multiple for multiple in _MULTIPLES] if self.radii is None else self.radii
        needed = covering(threat, x[0].numel())
        return {
            "accuracy": _share([radius >= 0 for radius in certified]),
            "abstained": sum(radius < 0 for radius in radii),
            "threat_needs_radius": needed,
            "certified_accuracy": _share([radius >= needed for radius in certified]),
            "average_certified_radius": sum(max(radius, 0.0) for radius in certified) / len(certified),
            "curve": [
                {"radius": at, "certified_accuracy": _share([radius >= at for radius in certified])}
                for at in sorted({float(radius) for radius in radii_asked})
            ],
        }


def _share(found: list[bool]) -> float:
    return sum(found) / len(found)
