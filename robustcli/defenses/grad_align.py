"""GradAlign: FGSM adversarial training with gradients that hardly change direction inside the ball."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from robustcli.attacks.crafting import crafting, crafting_mode
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.data.targets import Labels
from robustcli.defenses import DEFENSES, Defense, Metrics
from robustcli.optimization.averaging import Averaging
from robustcli.optimization.averaging.none import LastWeights
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularizers import Regularizer, RunningRegularizer, add_penalty
from robustcli.optimization.regularizers.none import Unregularized
from robustcli.registry.types import AttackBn, NonNegative
from robustcli.runtime import ranks
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@DEFENSES.register("grad_align", second_derivatives=True, passes=(3, 2, 3))
@dataclass(frozen=True, kw_only=True)
class GradAlign(Defense):
    """Cross-entropy at the FGSM image, plus lambda (1 - cosine of the gradients at x and near it).

    Training compares the gradients at x and at x + eta, with eta uniform in the ball, not clipped to [0, 1]. The
    gradient at x is that of FGSM, so the alignment costs one more gradient and its derivative; both use the labels
    without smoothing. Examples with a zero gradient are left out of the mean. In catastrophic overfitting, the logged
    `cosine` falls from near 1 to near 0. Batch statistics are updated by the adversarial batch and, with attack_bn
    "train", by the forwards of both gradients.

    When to use: for fast training with eps where fgsm and rs_fgsm collapse, at about twice their cost.

    First setting: align 0.2 for eps 8/255; more for a larger eps. Use fp32 without compilation.

    Args:
        align: lambda. The authors use 0.02 * 10^(eps / 8) on CIFAR-10, eps in 1/255: 0.063 for 4, 0.2 for 8,
            2 for 16. 0 is FGSM training.
        detach_clean: whether the gradient at x is held fixed in the cosine (as released); false trains through both.
        attack_bn: mode of the model for both gradients: train (as in published single-step code), eval or
            batch_no_update.
        averaging: rule for the weights that are evaluated.
        regularizer: r, a penalty on the weights or a projection.

    Reference: Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial Training", NeurIPS 2020.
    """

    align: NonNegative = 0.2
    detach_clean: bool = True
    attack_bn: AttackBn = "train"
    averaging: Averaging = field(default_factory=LastWeights)
    regularizer: Regularizer = field(default_factory=Unregularized)

    is_single_step = True

    def start(self, model: nn.Module, optimizer: Optimizer, rng: Noise) -> "GradAlignStep":
        return GradAlignStep(self, model, optimizer, rng, self.regularizer.start(model))


@dataclass(frozen=True)
class GradAlignStep:
    """GradAlign bound to a model; its only state is that of the regularizer."""

    settings: GradAlign
    model: nn.Module
    optimizer: Optimizer
    rng: Noise
    regularizer: RunningRegularizer

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, progress: Progress) -> Metrics:
        grad = self._gradient(x, labels.attack, is_learnt=not self.settings.detach_clean)
        x_adv = threat.project(x + threat.ascent(grad.detach(), x, threat.radius), x)
        loss = F.cross_entropy(self.model(x_adv), labels.loss)
        metrics = {}
        if self.settings.align:
            grad_noisy = self._gradient(x + threat.noise(x, self.rng), labels.attack, is_learnt=True)
            cosine = mean_cosine(grad, grad_noisy)
            loss = loss + self.settings.align * (1 - cosine)
            metrics["cosine"] = cosine.detach()
        self.optimizer.zero_grad()
        penalized = add_penalty(self.regularizer, self.model, x, labels.loss, progress)
        # Only to the weights: the images are also leaves of the second gradient's graph.
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        ranks.weighed(loss).backward(inputs=trained)  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.regularizer.after(self.model, progress)
        return ranks.metrics({"loss": loss.detach(), **metrics, **penalized})

    def _gradient(self, points: Tensor, y: Tensor, *, is_learnt: bool) -> Tensor:
        """Gradient of the cross-entropy at some points; with its graph if `is_learnt`."""
        if not is_learnt:
            with crafting(self.model, self.settings.attack_bn):
                return input_gradient(self.model, points, LOSSES["ce"], y)[0]
        # Without fused attention kernels, which have no second derivative.
        with crafting_mode(self.model, self.settings.attack_bn), sdpa_kernel(SDPBackend.MATH):
            return input_gradient(self.model, points, LOSSES["ce"], y, create_graph=True)[0]

    def state_dict(self) -> dict[str, Any]:
        return self.regularizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.regularizer.load_state_dict(state)


def mean_cosine(one: Tensor, other: Tensor) -> Tensor:
    """Mean cosine of two gradients (n, ...) over the examples where both are nonzero; 1 if there are none.

    With several processes the mean is over the whole batch.
    """
    one, other = one.flatten(1), other.flatten(1)
    lengths = [gradient.norm(dim=1, keepdim=True) for gradient in (one, other)]
    counts = (lengths[0] > 0) & (lengths[1] > 0)
    # Divide by 1 where a length is 0: masking after a division by 0 would leave NaN in the derivative.
    first, second = (v / torch.where(counts, length, 1) for v, length in zip((one, other), lengths, strict=True))
    lost = (1 - (first * second).sum(1)) * counts.squeeze(1)
    mean: Tensor = 1 - lost.sum() / ranks.usual(counts.sum())
    return mean
