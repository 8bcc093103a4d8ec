"""Certified accuracy of the network smoothed by Gaussian noise."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import logits_of
from robustcli.errors import RobustCliError
from robustcli.evaluators import chunks
from robustcli.registry.types import Count, NonNegative, Positive, ProperShare
from robustcli.statistics import clopper_pearson
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

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        radii, certified = self.radii_of(model, x, y, rng)
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

    def radii_of(self, model: nn.Module, x: Tensor, y: Tensor, rng: IndexedNoise) -> tuple[list[float], list[float]]:
        """Certified l2 radius of every image, -1 where the network abstains; and the same with -1 for wrong classes."""
        radii, certified = [], []
        for row in torch.arange(len(x), device=x.device):
            own = rng.rows(row[None])
            first = self._votes(model, x[row], own.split("selection"), self.selection)
            chosen = int(first.argmax())
            votes = int(self._votes(model, x[row], own.split("samples"), self.samples)[chosen])
            radii.append(self.radius(votes))
            certified.append(radii[-1] if chosen == int(y[row]) else -1.0)
        return radii, certified

    def radius(self, votes: int) -> float:
        """Certified l2 radius for this number of votes; -1 if the network abstains."""
        # One-sided interval: all of alpha is on the lower side.
        low, _ = clopper_pearson(votes, self.samples, 1 - 2 * self.alpha) if self.alpha < 0.5 else (0.0, 1.0)
        return self.sigma * float(ndtri(low)) if low > 0.5 else -1.0

    def _votes(self, model: nn.Module, image: Tensor, rng: IndexedNoise, count: int) -> Tensor:
        """Number of votes of noisy copies of one image (c, h, w) for each class: (k,)."""
        votes: Tensor | None = None
        for number, part in enumerate(chunks(count, _DRAWN)):
            size = part.stop - part.start
            noise = rng.split(f"part {number}").normal(image.expand(1, size, *image.shape))[0]
            logits = logits_of(model, image + self.sigma * noise, self.batch_size)
            found = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
            votes = found if votes is None else votes + found
        assert votes is not None
        return votes


# Copies drawn at once; a constant, because the noise must not depend on the batch size.
_DRAWN = 1000


def covering(threat: ThreatModel, values: int) -> float:
    """Radius of the smallest l2 ball around an image that contains its threat set."""
    return threat.radius * values**0.5 if threat.norm == "linf" else float(Fraction(threat.eps))


def _share(found: list[bool]) -> float:
    return sum(found) / len(found)
