"""CIFS: adversarial training of a network whose channels are weighted by jointly trained probes."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustcli.architectures.channel_gates import gates_of, labeled
from robustcli.attacks.joint_pgd import JointPgd, JointScores, joint_loss
from robustcli.attacks.losses import labels_of
from robustcli.defenses import DEFENSES, Batch, StatelessLoss, refuse_shares
from robustcli.defenses.min_max import MinMax
from robustcli.errors import RobustCliError
from robustcli.registry.types import AttackBn, NonNegative, Positive, Start, Steps


@dataclass(frozen=True, kw_only=True)
class CifsLoss(StatelessLoss):
    """3 / (beta + 1) [CE(f(x'), y) + (beta / L) sum over L probes of CE(probe_l(x'), y)], mean over the batch.

    The gates see the labels only here.
    """

    beta: float
    soft_labels: Literal["refuse", "largest"] = "largest"

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.soft_labels == "refuse":
            refuse_shares(batch, "cifs")
        if not gates_of(model):
            raise RobustCliError(
                "this network has no channel gates; write architecture: {name: cifs, ...}, or channel_gate: cifs"
            )
        with labeled(model, labels_of(batch.y)):
            scores = JointScores(model, self.beta)(batch.x_adv)
        return 3 / (self.beta + 1) * joint_loss(scores, batch.y).mean()


@DEFENSES.register(
    "cifs",
    trains="cifs",
    trains_with={"channel_gate": "cifs"},
    smoke={"steps": 2, "soft_labels": "largest"},
    passes=(11, 10, 1),
)
def cifs(
    *,
    beta: NonNegative = 2.0,
    attack_beta: NonNegative = 2.0,
    soft_labels: Literal["refuse", "largest"] = "refuse",
    steps: Steps = 10,
    step_size: Positive | None = None,
    start: Start = "random",
    attack_bn: AttackBn = "eval",
) -> MinMax:
    """Joint cross-entropy of a network and the probes of its channel gates, at adversarial images that maximize it.

    Trains the architecture of the same name, and networks with channel_gate: cifs. In the loss, a gate weights
    channels by the label and the probe's second most likely class; in the attack and in evaluation, by the two most
    likely classes. The published training starts from a network of the same architecture trained on clean images;
    this one starts from scratch. Batch statistics are updated by the adversarial batch.

    When to use: to train networks whose channels are gated by their contribution to the class.

    First setting: channel_gate: cifs on preact_resnet18 with beta 2; evaluate also with joint_pgd, which attacks the
    gates.

    Args:
        beta: total weight of the probes in the loss; 0 trains them only through the masks.
        attack_beta: total weight of the probes in the objective of the attack.
        soft_labels: rule for mixed or smoothed labels, which the paper does not have: "refuse" them, or give the gates
            the class with the "largest" share (our choice).
        step_size: length of one step in the unit of eps; null is a quarter of eps (2/255 for 8/255, as released).

    Reference: Yan et al., ICML 2021.
    """
    return MinMax(
        attack=JointPgd(beta=attack_beta, steps=steps, step_size=step_size, start=start),
        loss=CifsLoss(beta=beta, soft_labels=soft_labels),
        attack_bn=attack_bn,
    )
