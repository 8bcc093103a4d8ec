"""PGD that stops moving an image once it has converged, by the first-order stationary condition."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.active_set import ActiveSet
from robustcli.attacks.ascent import Look, gradient_ascent, steepest, step_length
from robustcli.attacks.gradient import Objective
from robustcli.attacks.losses import LOSSES
from robustcli.registry.types import Count, NonNegative, Positive
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register(
    "fosc_pgd", passes=(10, 10, 0), metrics=("fosc", "attack_steps"), smoke={"steps": 3, "criterion": 0.04}
)
@dataclass(frozen=True, kw_only=True)
class FoscPgd(Attack):
    """PGD in which an image stops moving when its FOSC falls to the criterion.

    FOSC(x') = eps |g|_1 - <x' - x, g> in linf, with g the gradient of the image's own loss: how much the linearized
    loss could still rise in the ball. It is 0 at a corner in the direction of the gradient. In other norms |.|_1 is the
    dual norm; the bounds [0, 1] are ignored. The first step is always taken; FOSC uses the gradient of the next step. A
    stopped image leaves the batch on a CPU with the model in eval mode, which saves its passes. In other cases it stays
    in the batch: leaving would change batch statistics or wait for the GPU in every step. The result is the same.

    It reports fosc, as last measured, and attack_steps, the mean number of steps of an image.

    When to use: in training, to control how well the examples have converged (see dynamic_at).

    First setting: criterion 0 for plain PGD; 0.5 for early epochs.

    Args:
        steps: maximum number of gradient steps.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        criterion: FOSC at or below which an image stops; 0 is PGD.
        center: x in the formula: the "clean" image, or the "start" of the attack as in the released code,
            where FOSC may become negative.
        start: "random", in the threat set, or "clean".
        loss: "ce", "margin" or "dlr".

    Reference: Wang et al., ICML 2019, definition 1; arXiv 2112.08304.
    """

    steps: Count = 10
    step_size: Positive | None = None
    criterion: NonNegative = 0.5
    center: Literal["clean", "start"] = "clean"
    start: Literal["random", "clean"] = "random"
    loss: Literal["ce", "margin", "dlr"] = "ce"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return self.search(model, x, y, threat, rng)[0]

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        start = threat.sample(x, rng) if self.start == "random" else x
        center = start if self.center == "start" else x
        step_size = step_length(self.step_size, threat)
        fosc = torch.zeros(len(x), dtype=x.dtype, device=x.device)

        def stop(look: Look) -> Tensor:
            fosc[look.rows] = threat.gap(look.grad, look.points, center[look.rows])
            return (fosc[look.rows] <= self.criterion) & (look.step > 0)

        active = ActiveSet.where_free(model, x)
        x_adv = gradient_ascent(
            Objective.at(model, x, y, LOSSES[self.loss]),
            start,
            self.steps,
            steepest(threat, x, step_size),
            stop=stop,
            active=active,
        )
        return x_adv, {"fosc": fosc.mean(), "attack_steps": active.steps.mean()}
