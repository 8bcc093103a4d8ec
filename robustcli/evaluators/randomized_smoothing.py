"""Certified accuracy of the network smoothed by Gaussian noise, next to its accuracy under an attack."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.evaluators import EVALUATORS, AttackContext, Certificate, Certifier, Evaluator, Stage
from robustcli.evaluators.smoothing import Smoothing, covering
from robustcli.registry.types import Count, Positive, ProperShare
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@EVALUATORS.register(
    "randomized_smoothing",
    smoke={"selection": 3, "samples": 20, "alpha": 0.05, "steps": 2, "gradients": 2, "batch_size": 8},
)
@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing(Evaluator):
    """Lower bound of the robust accuracy of the smoothed network, and the upper bound of PGD on it.

    Everything is about the smoothed network, which returns the class of most of `selection` noisy copies of an image:
    clean accuracy, accuracy under PGD along the mean of several gradients, and certified accuracy. An image is
    certified if its certified l2 radius covers the threat set: eps in l2 and l1, and eps times the root of the number
    of values in linf. Where no class is certain to be the most likely one, the network abstains, which counts as not
    certified; the result has the number of such images. An image that is certified and broken, beyond the chance that
    `alpha` leaves, makes the result SUSPECT. The diagnostic of this name shows the certified accuracy over the radius.

    When to use: for a guarantee, with networks that were trained with such noise.

    First setting: sigma 0.25 and the defaults on 500 images; the published tables use 100,000 samples.

    Args:
        sigma: standard deviation of the noise, in pixels of [0, 1]; noisy images are not clipped.
        selection: noisy copies that choose the class.
        samples: noisy copies that bound its probability.
        alpha: probability with which the certificate of an image may be wrong.
        steps: gradient steps of PGD on the smoothed network.
        gradients: noisy gradients whose mean gives a step its direction.
        batch_size: images per pass; changes memory and speed, not the number.

    Reference: Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019;
        attack: Salman et al., NeurIPS 2019.
    """

    sigma: Positive = 0.25
    selection: Count = 100
    samples: Count = 1000
    alpha: ProperShare = 0.001
    steps: Count = 20
    gradients: Count = 8
    batch_size: Count = 100

    @property
    def votes(self) -> int:
        """Noisy copies that choose the class."""
        return self.selection

    @property
    def certifier(self) -> Certifier:
        return _Smoothed(
            Smoothing(
                sigma=self.sigma,
                selection=self.selection,
                samples=self.samples,
                alpha=self.alpha,
                batch_size=self.batch_size,
            )
        )

    def stages(self, context: AttackContext) -> list[Stage]:
        attack = Pgd(steps=self.steps, gradients=self.gradients, keep="best")
        return [Stage.of(attack, self.batch_size)]


@dataclass(frozen=True)
class _Smoothed(Certifier):
    smoothing: Smoothing

    @property
    def smooths(self) -> bool:
        return True

    def network(self, model: nn.Module) -> nn.Module:
        return Noisy(model, self.smoothing.sigma).train(model.training)

    def certify(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Certificate:
        radii, right = self.smoothing.radii_of(model, x, y, rng)
        needed = covering(threat, x[0].numel())
        return Certificate(
            torch.tensor([radius >= needed for radius in right]),
            abstained=sum(radius < 0 for radius in radii),
            chance=self.smoothing.alpha,
        )


class Noisy(nn.Module):
    """A network whose images get Gaussian noise from torch's global generator."""

    def __init__(self, network: nn.Module, sigma: float) -> None:
        super().__init__()
        self.network = network
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x + self.sigma * torch.randn_like(x))
        return logits
