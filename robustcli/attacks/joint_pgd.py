"""PGD on the joint loss of a network and its probes."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustcli.architectures.channel_gates import with_probes
from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.ascent import gradient_ascent, steepest, step_length
from robustcli.attacks.best_so_far import BestSoFar
from robustcli.attacks.gradient import Objective
from robustcli.attacks.losses import AttackLoss, shares_of
from robustcli.registry.types import NonNegative, Positive, Size
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


class JointScores(nn.Module):
    """Images -> log p(x) + (beta / L) sum over L probes of log p_l(x): (n, k); without probes log p(x).

    The negative score of the label is CE(f(x), y) + (beta / L) sum of CE(probe_l(x), y).
    """

    def __init__(self, model: nn.Module, beta: float) -> None:
        super().__init__()
        self.model = model
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        logits, probes = with_probes(self.model, x)
        scores = logits.log_softmax(1)
        for probe in probes:
            scores = scores + self.beta / len(probes) * probe.log_softmax(1)
        return scores


def joint_loss(scores: Tensor, y: Tensor) -> Tensor:
    """CE + (beta / L) sum of CE, per example, from joint scores; y may be labels (n,) or class shares (n, k)."""
    return -(shares_of(y, scores) * scores).sum(1)


_JOINT = AttackLoss(refer=lambda model, x, y: y, score=joint_loss)


@ATTACKS.register("joint_pgd", passes=(10, 10, 0), smoke={"steps": 2})
@dataclass(frozen=True, kw_only=True)
class JointPgd(Attack):
    """Steepest ascent on CE(f(x'), y) + (beta / L) sum of CE(probe_l(x'), y), over the L probes of a network.

    The probes belong to channel gates (architecture cifs, or channel_gate: cifs), which select what the network uses;
    without gates the attack is PGD.

    When to use: to evaluate networks with channel gates; it attacks the gates too.

    First setting: beta 0, 2 and 10 in a worst_case.

    Args:
        beta: weight of the probes; 0 is PGD. An adaptive evaluation tries several.
        steps: gradient steps.
        step_size: length of one step in the unit of eps; null is a quarter of eps.
        start: start of the search: "random" in the threat set, or "clean", as in the released evaluation.
        keeps_best: return the point with the highest joint loss, which may be the start, instead of the last one;
            costs one more forward.

    Reference: Yan et al., ICML 2021.
    """

    beta: NonNegative = 2.0
    steps: Size = 10
    step_size: Positive | None = None
    start: Literal["random", "clean"] = "random"
    keeps_best: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        objective = Objective(JointScores(model, self.beta), _JOINT, y)
        start = threat.sample(x, rng.split("restart 0")) if self.start == "random" else x
        move = steepest(threat, x, step_length(self.step_size, threat))
        best = BestSoFar.start(x) if self.keeps_best else None
        x_adv = gradient_ascent(objective, start, self.steps, move, best=best)
        return x_adv if best is None else best.points
