"""PGD that stops soon after an image is misclassified: friendly adversarial examples."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.active_set import ActiveSet
from robustcli.attacks.ascent import Look, gradient_ascent, step_length
from robustcli.attacks.gradient import Objective, is_fooled
from robustcli.attacks.losses import LOSSES, labels_of
from robustcli.registry.types import Count, NonNegative, Positive, Size
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register("early_stopped_pgd", passes=(10, 10, 0), metrics=("attack_steps",), smoke={"steps": 3})
@dataclass(frozen=True, kw_only=True)
class EarlyStoppedPgd(Attack):
    """PGD in which an image stops at its misclassified point number `patience` + 1.

    Patience 0 stops at the first misclassified point, which may be the start; with patience >= steps it is PGD. Noise
    is added to every step. The last point is not classified, as in the released code. A stopped image leaves the batch
    on a CPU with the model in eval mode, which saves its passes. In other cases it stays in the batch: leaving would
    change batch statistics or wait for the GPU in every step. The result is the same.

    It reports attack_steps, the mean number of steps of an image.

    When to use: in training, where weak examples are wanted (see fat); for an evaluation use pgd.

    First setting: patience 0 for the first misclassified point.

    Args:
        steps: maximum number of gradient steps.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        patience: tau, the number of misclassified points from which an image still moves on.
        noise_std: standard deviation of the normal noise added to every step, in pixels of [0, 1].
        start: "random": in the threat set. "gaussian": x plus 0.001 times normal noise.
        loss: "ce", or "kl" from the clean prediction.

    Reference: Zhang et al., ICML 2020, Algorithm 1; arXiv 2002.11242.
    """

    steps: Count = 10
    step_size: Positive | None = None
    patience: Size = 0
    noise_std: NonNegative = 0.001
    start: Literal["random", "gaussian"] = "random"
    loss: Literal["ce", "kl"] = "ce"

    @property
    def needs_labels(self) -> bool:
        """True: the search of an image stops where its label is lost."""
        return True

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return self.search(model, x, y, threat, rng)[0]

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels = labels_of(y)
        objective = Objective.at(model, x, y, LOSSES[self.loss])
        # Projected, because a start that is returned must lie in the threat set.
        start = threat.sample(x, rng) if self.start == "random" else threat.project(x + 0.001 * rng.normal(x), x)
        step_size = step_length(self.step_size, threat)
        patience = torch.full_like(labels, self.patience)

        def stop(look: Look) -> Tensor:
            is_wrong = is_fooled(look.logits, labels[look.rows])
            is_done = is_wrong & (patience[look.rows] == 0)
            patience[look.rows] = (patience[look.rows] - is_wrong.long()).clamp_min(0)
            return is_done

        def move(look: Look) -> Tensor:
            moved = look.points + threat.ascent(look.grad, look.points, step_size)
            if self.noise_std:
                # Drawn for all images, because the noise of an image must not depend on the others.
                moved = moved + self.noise_std * rng.normal(x)[look.rows]
            return threat.project(moved, x[look.rows])

        active = ActiveSet.where_free(model, x)
        x_adv = gradient_ascent(objective, start, self.steps, move, stop=stop, active=active)
        return x_adv, {"attack_steps": active.steps.mean()}
