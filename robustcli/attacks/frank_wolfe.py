"""Frank-Wolfe: steps towards corners of the ball instead of projected steps."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.registry.types import Count, Positive
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register("frank_wolfe", passes=(10, 10, 0), metrics=("distortion",), smoke={"steps": 2})
@dataclass(frozen=True, kw_only=True)
class FrankWolfe(Attack):
    """Frank-Wolfe: delta <- (1 - g_k) delta + g_k s_k, s_k the steepest point of the ball, g_k = c / (c + k).

    g_0 is 1, so one step from the clean image is FGSM. A mean of points of the ball lies in the ball, so there is no
    projection. The model and the caller see x + delta clipped to [0, 1], while delta is not clipped; the released code
    never clips. In l1, s_k is the threat model's step of length eps.

    It reports the distortion of delta, its Euclidean length divided by the largest in the ball: 1 if all s_k agree, so
    that the first step would have been enough, and small if they contradict each other.

    When to use: to measure the distortion of few steps, each to a vertex of the ball.

    First setting: the defaults with 10 steps.

    Args:
        steps: gradient steps.
        c: how slowly the weight of later steps falls; the released code has 2.
        start: point of the first gradient: the clean image, or a random point of the threat set.
        loss: "ce", "margin" or "dlr".

    Reference: Frank and Wolfe, 1956; as a training attack Tsiligkaridis and Roberts, CVPR 2022.
    """

    steps: Count = 10
    c: Positive = 2.0
    start: Literal["clean", "random"] = "clean"
    loss: Literal["ce", "margin", "dlr"] = "ce"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return threat.project(x + self.perturbation(model, x, y, threat, rng), x)

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        delta = self.perturbation(model, x, y, threat, rng)
        return threat.project(x + delta, x), {"distortion": threat.distortion(delta).mean()}

    def perturbation(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        """Return delta after the last step, in the ball and not clipped to [0, 1]."""
        loss = LOSSES[self.loss]
        reference = loss.refer(model, x, y)
        delta = torch.zeros_like(x) if self.start == "clean" else threat.sample(x, rng) - x
        for k in range(self.steps):
            grad, _, _ = input_gradient(model, threat.project(x + delta, x), loss, reference)
            delta = delta.lerp(threat.ascent(grad, x, threat.radius), self.c / (self.c + k))
        return delta
