"""Projected gradient descent, for every norm."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.active_set import ActiveSet
from robustcli.attacks.ascent import Repeats, gradient_ascent, once_fooled, steepest, step_length
from robustcli.attacks.best_so_far import BestSoFar
from robustcli.attacks.gradient import Objective
from robustcli.attacks.losses import LOSSES, labels_of
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count, Positive, Size
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register(
    "pgd", passes=(10, 10, 0), flat_at_x=("kl", "squared"), added={"reach_eps": False}, smoke={"steps": 2}
)
@dataclass(frozen=True, kw_only=True)
class Pgd(Attack):
    """Steepest-ascent steps from a start near x, each projected back into the threat set.

    With keep "last" and one restart it costs one forward and one backward to the input per step; other values of keep
    also score the last point. Evaluations use "fooled": an example leaves the batch at its first misclassified point,
    which is never weaker and usually cheaper, and also when its points begin to repeat.

    When to use: as the usual attack in training, and for quick evaluations before autoattack.

    First setting: 20 steps with keep: fooled for an evaluation; more restarts change little, the margin loss more.

    Args:
        steps: gradient steps; 0 returns the start.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        start: "random": in the threat set. "clean": x. "gaussian": x plus `start_std` times normal noise, which is not
            projected before the first step (TRADES).
        start_std: standard deviation of the gaussian start, in pixels of [0, 1].
        restarts: independent attempts; the point with the highest loss is kept for each example.
        loss: "ce", "kl" or "squared" (distance of the probabilities from the clean ones), "margin" or "dlr".
        keep: "last" point of an attempt, "best" (highest loss of all points, including the start), or
            "fooled" (the first misclassified point, otherwise the best).
        gradients: number of averaged gradients per step, for models whose logits vary (expectation over
            transformation); the loss is the mean of all, and a fooled point is one that every pass misclassifies.
        reach_eps: whether steps whose sum is shorter than eps are lengthened to eps / steps.

    Reference: Madry et al., ICLR 2018; gaussian start and kl: Zhang et al., ICML 2019;
        gradients: Athalye et al., Synthesizing robust adversarial examples, ICML 2018; reach_eps: Xie et al.,
        CVPR 2019, in code.
    """

    steps: Size = 10
    step_size: Positive | None = None
    start: Literal["random", "clean", "gaussian"] = "random"
    start_std: Positive = 0.001
    restarts: Count = 1
    loss: Literal["ce", "kl", "squared", "margin", "dlr"] = "ce"
    keep: Literal["last", "best", "fooled"] = "last"
    gradients: Count = 1
    reach_eps: bool = False

    def __post_init__(self) -> None:
        if LOSSES[self.loss].rests_at_x and self.start == "clean":
            raise RobustCliError(
                f"attack pgd: loss '{self.loss}' with start 'clean' never moves, its gradient is zero there; "
                "use start 'gaussian' or 'random'"
            )
        if self.restarts > 1 and self.start == "clean":
            raise RobustCliError("attack pgd: restarts from start 'clean' are all the same; use start 'random'")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        objective = Objective.at(model, x, y, LOSSES[self.loss], gradients=self.gradients)
        move = steepest(threat, x, self._length(threat))
        if self.keep == "last" and self.restarts == 1:
            return gradient_ascent(objective, self._start(x, threat, rng.split("restart 0")), self.steps, move)
        best, rows = BestSoFar.start(x), torch.arange(len(x), device=x.device)
        stop = once_fooled(labels_of(y)) if self.keep == "fooled" else None
        for restart in range(self.restarts):
            start = x.clone()
            start[rows] = self._start(x[rows], threat, rng.rows(rows).split(f"restart {restart}"))
            if self.keep == "last":
                points = gradient_ascent(objective, start, self.steps, move)
                best.update(points, objective.score(points, rows)[0])
                continue
            # The mean of several gradients is for networks that draw noise, which do not repeat themselves.
            repeats = Repeats(x, self.steps) if stop is not None and self.gradients == 1 else None
            active = ActiveSet(x, rows)
            gradient_ascent(objective, start, self.steps, move, stop=stop, repeats=repeats, best=best, active=active)
            rows = best.open_rows()
            if not len(rows):
                break
        return best.points

    def longer(self) -> "Pgd | None":
        return replace(self, steps=2 * self.steps, restarts=1, keep="fooled") if self.steps else None

    def _start(self, x: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        if self.start == "random":
            start = threat.sample(x, rng)
        elif self.start == "gaussian":
            start = x + self.start_std * rng.normal(x)
        else:
            start = x
        # A start that may be returned must lie in the threat set.
        return start if self.keep == "last" and self.steps else threat.project(start, x)

    def _length(self, threat: ThreatModel) -> float:
        """Length of one step."""
        step_size = step_length(self.step_size, threat)
        return max(step_size, threat.radius / self.steps) if self.reach_eps and self.steps else step_size


@ATTACKS.register("eot_pgd", passes=(210, 200, 0), smoke={"steps": 2, "gradients": 2})
def eot_pgd(
    *,
    steps: Size = 20,
    step_size: Positive | None = None,
    gradients: Count = 10,
    keep: Literal["last", "best", "fooled"] = "fooled",
) -> Pgd:
    """PGD along the mean of several gradients at every point, for models that draw noise in their forward.

    When to use: for networks whose logits vary from call to call.

    First setting: the defaults; raise gradients until robust accuracy no longer falls.

    Args:
        steps: gradient steps.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        gradients: number of averaged gradients per step.
        keep: "last" point, "best" (highest mean loss), or "fooled" (the first point that all passes misclassify,
            otherwise the best).

    Reference: Athalye et al., Synthesizing robust adversarial examples, ICML 2018.
    """
    return Pgd(steps=steps, step_size=step_size, gradients=gradients, keep=keep)


@ATTACKS.register("tpgd", passes=(11, 10, 0), smoke={"steps": 2})
def tpgd(
    *,
    steps: Size = 10,
    step_size: Positive | None = None,
    start_std: Positive = 0.001,
    keep: Literal["last", "best", "fooled"] = "last",
) -> Pgd:
    """The inner attack of TRADES: away from the clean prediction, from a start near x.

    Labels are used only by keep "fooled".

    When to use: in training (see trades); for an evaluation prefer pgd, because it ignores the label.

    First setting: the defaults.

    Args:
        steps: gradient steps.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        start_std: standard deviation of the normal noise at the start, in pixels of [0, 1].
        keep: "last" point, as published, "best" (highest divergence of all points), or "fooled" (the first
            misclassified point, otherwise the best).

    Reference: Zhang et al., Theoretically principled trade-off between robustness and accuracy, ICML 2019.
    """
    return Pgd(steps=steps, step_size=step_size, start="gaussian", start_std=start_std, loss="kl", keep=keep)
