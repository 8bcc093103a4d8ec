"""An attack on one branch of a network that has several."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.architectures.branches import branched_of, through_branch
from robustcli.attacks import Attack
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class ThroughBranch(Attack):
    """Attack the network with one branch for all images, without the gate.

    Args:
        branch: number of the branch, from 0.
        branches: number of branches that the network must have.
    """

    attack: Attack
    branch: int
    branches: int

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        with through_branch(branched_of(model, self.branches), self.branch):
            return self.attack(model, x, y, threat, rng)
