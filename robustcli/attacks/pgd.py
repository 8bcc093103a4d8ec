"""Projected gradient descent, for every norm."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS
from robustcli.attacks.crafting import ascend_by_mean
from robustcli.attacks.losses import LOSSES, labels_of
from robustcli.attacks.worst import Worst
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count, Positive, Size
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@ATTACKS.register("pgd", flat_at_x=("kl", "squared"), added={"reach_eps": False}, smoke={"steps": 2})
@dataclass(frozen=True, kw_only=True)
class Pgd:
    """Steepest-ascent steps from a start near x, each projected back into the threat set.

    With keep "last" and one restart it costs one forward and one input-backward per step and no more.
    The other two also score the last point. "fooled" is the evaluation's rule: an example leaves the
    batch with its first misclassified point, which is never weaker and mostly cheaper.

    Args:
        steps: gradient steps; 0 returns the start.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        start: "random": in the threat set. "clean": at x. "gaussian": beside x, by `start_std` times
            normal noise that is not projected before the first step (TRADES).
        start_std: standard deviation of the gaussian start, in pixels of [0, 1].
        restarts: independent tries; the point with the highest loss is kept of each example.
        loss: "ce", "kl" or "squared" (how far the probabilities are from the clean ones), "margin" or "dlr".
        keep: "last" point of a try, "best" (highest loss of all points, the start included), or
            "fooled" (the first misclassified point, otherwise the best).
        gradients: passes whose mean gradient gives a step its direction, for models whose logits vary
            (expectation over transformation); loss and verdict are those of the last one alone.
        reach_eps: whether steps that together are shorter than eps are lengthened to eps / steps.

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
        reference = LOSSES[self.loss].refer(model, x, y)
        if self.keep == "last" and self.restarts == 1:
            return self._walk(model, x, reference, threat, rng.split("restart 0"))
        if self.keep == "fooled":
            return self._until_fooled(model, x, y, reference, threat, rng)
        worst = Worst.of(x)
        for restart in range(self.restarts):
            self._search(model, x, reference, threat, rng.split(f"restart {restart}"), worst)
        return worst.points

    def _begin(self, x: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        if self.start == "random":
            return threat.sample(x, rng)
        if self.start == "gaussian":
            return x + self.start_std * rng.normal(x)
        return x

    def _advance(self, x_adv: Tensor, grad: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        step_size = threat.radius / 4 if self.step_size is None else self.step_size
        if self.reach_eps:
            step_size = max(step_size, threat.radius / self.steps)
        return threat.project(x_adv + threat.ascent(grad, x_adv, step_size), x)

    def _walk(self, model: nn.Module, x: Tensor, reference: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        """One try that keeps its last point: `steps` gradients and nothing else."""
        x_adv = self._begin(x, threat, rng)
        for _ in range(self.steps):
            grad, _, _ = ascend_by_mean(model, x_adv, LOSSES[self.loss], reference, self.gradients)
            x_adv = self._advance(x_adv, grad, x, threat)
        return x_adv if self.steps else threat.project(x_adv, x)

    def _search(
        self, model: nn.Module, x: Tensor, reference: Tensor, threat: ThreatModel, rng: Noise, worst: Worst
    ) -> None:
        """One try whose last point, or whose every point, may become the worst one."""
        loss = LOSSES[self.loss]
        if self.keep == "last":
            x_adv = self._walk(model, x, reference, threat, rng)
        else:
            # Projected, because a start that is kept must lie in the threat set.
            x_adv = threat.project(self._begin(x, threat, rng), x)
            for _ in range(self.steps):
                grad, scores, _ = ascend_by_mean(model, x_adv, loss, reference, self.gradients)
                worst.see(x_adv, scores)
                x_adv = self._advance(x_adv, grad, x, threat)
        with torch.no_grad():
            worst.see(x_adv, loss.score(model(x_adv), reference))

    def _until_fooled(
        self, model: nn.Module, x: Tensor, y: Tensor, reference: Tensor, threat: ThreatModel, rng: Noise
    ) -> Tensor:
        """Each example is searched until a point fools the model; the batch holds only those still right."""
        loss, labels = LOSSES[self.loss], labels_of(y)
        found = Worst.of(x)
        rows = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            source = rng.rows(rows).split(f"restart {restart}")
            x_adv = threat.project(self._begin(x[rows], threat, source), x[rows])
            for _ in range(self.steps):
                grad, scores, logits = ascend_by_mean(model, x_adv, loss, reference[rows], self.gradients)
                stays = found.see_rows(rows, x_adv, scores, logits.argmax(1) != labels[rows])
                rows, x_adv, grad = rows[stays], x_adv[stays], grad[stays]
                if not len(rows):
                    return found.points
                x_adv = self._advance(x_adv, grad, x[rows], threat)
            with torch.no_grad():
                logits = model(x_adv)
            scores = loss.score(logits, reference[rows])
            rows = rows[found.see_rows(rows, x_adv, scores, logits.argmax(1) != labels[rows])]
            if not len(rows):
                return found.points
        return found.points


@ATTACKS.register("eot_pgd", smoke={"steps": 2, "gradients": 2})
def eot_pgd(
    *,
    steps: Size = 20,
    step_size: Positive | None = None,
    gradients: Count = 10,
    keep: Literal["last", "best", "fooled"] = "fooled",
) -> Pgd:
    """PGD along the mean of several gradients at every point, for models that draw noise in their forward.

    Args:
        steps: gradient steps.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        gradients: passes whose mean gradient gives a step its direction.
        keep: "last" point, "best" (highest loss, as the last pass of each point saw it), or "fooled" (the first
            point that the last pass there misclassified, otherwise the best).

    Reference: Athalye et al., Synthesizing robust adversarial examples, ICML 2018.
    """
    return Pgd(steps=steps, step_size=step_size, gradients=gradients, keep=keep)


@ATTACKS.register("tpgd", smoke={"steps": 2})
def tpgd(
    *,
    steps: Size = 10,
    step_size: Positive | None = None,
    start_std: Positive = 0.001,
    keep: Literal["last", "best", "fooled"] = "last",
) -> Pgd:
    """The inner attack of TRADES: away from the clean prediction, from a start beside x.

    No label is used, but by "fooled".

    Args:
        steps: gradient steps.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        start_std: standard deviation of the normal noise at the start, in pixels of [0, 1].
        keep: "last" point, as published, "best" (highest divergence of all points), or "fooled" (the first
            misclassified point, otherwise the best).

    Reference: Zhang et al., Theoretically principled trade-off between robustness and accuracy, ICML 2019.
    """
    return Pgd(steps=steps, step_size=step_size, start="gaussian", start_std=start_std, loss="kl", keep=keep)
