"""FW-Adapt: Frank-Wolfe adversarial training whose number of steps depends on the distortion of two steps."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.attacks.frank_wolfe import FrankWolfe
from robustcli.data.targets import Labels
from robustcli.defenses import DEFENSES, Defense, Metrics
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax
from robustcli.optimization.averaging import Averaging
from robustcli.optimization.averaging.none import LastWeights
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularisers import Regulariser
from robustcli.optimization.regularisers.none import Unregularised
from robustcli.optimization.weights import WeightPerturbation
from robustcli.optimization.weights.none import Unperturbed
from robustcli.registry.types import AttackBn, Count, NonNegative, Positive
from robustcli.runtime import ranks
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# Number of attack steps for the first batches of an epoch.
_MONITOR_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class AdaptiveFrankWolfe(Defense):
    """MinMax with a Frank-Wolfe attack of K steps, where K is chosen in every epoch.

    Args:
        max_distortion: distortion from which K is halved.
        monitor_images: number of images at the start of an epoch whose distortion is measured.
        increase: steps added to K below that distortion.
        max_steps: largest number of attack steps, K.
        c: constant of the attack's weights c / (c + k).
        weights: the perturbation of the weights at which the loss is computed.
        averaging: rule for the weights that are evaluated.
        regulariser: r, a penalty on the weights or a projection.
        attack_bn: mode of the model while it is attacked: "eval", "train" or "batch_no_update".
    """

    max_distortion: float
    monitor_images: int
    increase: int
    max_steps: int
    c: float
    weights: WeightPerturbation = field(default_factory=Unperturbed)
    averaging: Averaging = field(default_factory=LastWeights)
    regulariser: Regulariser = field(default_factory=Unregularised)
    attack_bn: AttackBn = "eval"

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "AdaptiveStep":
        return AdaptiveStep(self, model, optimizer, rng)

    def with_steps(self, steps: int) -> MinMax:
        """The method with K = `steps`."""
        return MinMax(
            attack=FrankWolfe(steps=steps, c=self.c),
            loss=AdversarialCrossEntropy(),
            weights=self.weights,
            regulariser=self.regulariser,
            attack_bn=self.attack_bn,
        )

    def decide(self, steps: int, distortion: float) -> int:
        """The next K, given the last one and the mean distortion of two steps."""
        if distortion >= self.max_distortion:
            return max(1, steps // 2)
        return min(self.max_steps, steps + self.increase)


class AdaptiveStep:
    """An AdaptiveFrankWolfe with its state.

    Args:
        step: the update with its state; only the number of steps changes.
        steps: current K.
        epoch: the epoch whose distortion is measured; -1 before the first.
        images: number of images measured in that epoch.
        distortion: sum over those images, on the device.
    """

    def __init__(self, settings: AdaptiveFrankWolfe, model: nn.Module, optimizer: Optimizer, rng: Noise) -> None:
        self.settings = settings
        self.step = settings.with_steps(_MONITOR_STEPS).start(model, optimizer, rng)
        self.steps, self.epoch, self.images = 1, -1, 0
        self.distortion = torch.zeros((), device=next(model.parameters()).device)

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        if int(progress.epoch) != self.epoch:
            self.epoch, self.images, self.distortion = int(progress.epoch), 0, torch.zeros_like(self.distortion)
        is_monitoring = self.images < self.settings.monitor_images
        steps = _MONITOR_STEPS if is_monitoring else self.steps
        metrics = replace(self.step, settings=self.settings.with_steps(steps))(x, labels, threat, progress)
        if is_monitoring:
            self._measure(ranks.images(len(x)), metrics["distortion"])
        return {**metrics, "attack_steps": torch.full_like(metrics["loss"], steps)}

    def _measure(self, images: int, distortion: Tensor) -> None:
        self.images += images
        self.distortion = self.distortion + images * distortion
        if self.images >= self.settings.monitor_images:
            # The only wait for the device in an epoch: the next attack depends on the answer.
            self.steps = self.settings.decide(self.steps, float(self.distortion) / self.images)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.step.state_dict(),
            "steps": self.steps,
            "epoch": self.epoch,
            "images": self.images,
            "distortion": self.distortion,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step.load_state_dict(state)
        self.steps, self.epoch, self.images = state["steps"], state["epoch"], state["images"]
        self.distortion = state["distortion"].to(self.distortion.device)


@DEFENSES.register(
    "fw_at_adapt",
    measured="chooses its steps in every epoch: measured with the 2 steps of the first images of an epoch",
    smoke={"monitor_images": 8, "max_steps": 5},
    passes=(3, 2, 1),
)
def fw_at_adapt(
    *,
    max_distortion: NonNegative = 0.9,
    monitor_images: Count = 1000,
    increase: Count = 2,
    max_steps: Count = 15,
    c: Positive = 2.0,
    attack_bn: AttackBn = "eval",
) -> AdaptiveFrankWolfe:
    """Frank-Wolfe training with more steps when two steps contradict each other and fewer when they agree.

    Every epoch starts with attacks of two steps, which also train. After monitor_images images, K becomes
    max(1, K // 2) if their mean distortion is at least max_distortion, and min(max_steps, K + increase) otherwise; the
    rest of the epoch is attacked with K steps. K starts at 1. At equality the paper's algorithm increases K; the
    released code, as here, halves it. Other mistakes of the released code are not repeated (see fw_at): with fewer
    than 1,000 training images it never decides and always takes two steps; here monitor_images must be smaller than an
    epoch.

    When to use: to train with few steps and without catastrophic overfitting.

    First setting: the defaults; check that attack_steps in the training record varies and is not always max_steps.

    Args:
        max_distortion: r, from which K is halved, between 0.745 (two steps with independent signs) and 1 (steps that
            agree). The released trainer has 0.9, as here; its command line has 2.0, which is never reached.
        monitor_images: images at the start of an epoch whose distortion is measured, in whole batches.
        increase: steps added below max_distortion.
        max_steps: largest number of attack steps, K.
        c: step k has weight c / (c + k); the released code has 2.
        attack_bn: mode of the model while it is attacked: eval (as released), train or batch_no_update.

    Reference: Tsiligkaridis and Roberts, CVPR 2022, arXiv 2012.12368, Algorithm 1.
    """
    return AdaptiveFrankWolfe(
        max_distortion=max_distortion,
        monitor_images=monitor_images,
        increase=increase,
        max_steps=max_steps,
        c=c,
        attack_bn=attack_bn,
    )
