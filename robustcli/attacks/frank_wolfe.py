"""Frank-Wolfe: steps towards corners of the ball instead of steps that are projected back."""

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


@ATTACKS.register("frank_wolfe", passes=(10, 10, 0), smoke={"steps": 2})
@dataclass(frozen=True, kw_only=True)
class FrankWolfe(Attack):
    """delta <- (1 - g_k) delta + g_k s_k, with s_k the steepest point of the ball and g_k = c / (c + k).

    g_0 is 1, so the first step goes all the way and one step from the clean image is FGSM. A mean of points
    of the ball lies in the ball: nothing is projected. The model and the caller see x + delta cut at the
    pixel box, while delta itself goes on uncut; the released code never cuts. In l1, s_k is the threat
    model's own step of length eps.

    It reports the distortion of delta: its Euclidean length over the greatest in the ball. That is 1 when
    all s_k agree, so that the steps after the first gained nothing, and small when they contradict each other.

    When to use: where every step is to be a vertex of the ball, so that the distortion of few steps can be read.

    First setting: the defaults with 10 steps.

    Args:
        steps: gradient steps.
        c: how slowly the weight of later steps falls; the released code has 2.
        start: where the first gradient is taken: at the clean image, or at a random point of the threat set.
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
        """delta after the last step, in the ball and not cut at the box."""
        loss = LOSSES[self.loss]
        reference = loss.refer(model, x, y)
        delta = torch.zeros_like(x) if self.start == "clean" else threat.sample(x, rng) - x
        for k in range(self.steps):
            grad, _, _ = input_gradient(model, threat.project(x + delta, x), loss, reference)
            delta = delta.lerp(threat.ascent(grad, x, threat.radius), self.c / (self.c + k))
        return delta
