"""The worst case over several evaluators, image by image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.errors import RobustCliError
from robustcli.evaluators import EVALUATORS, Evaluator
from robustcli.noise import IndexedNoise
from robustcli.threat import ThreatModel


@EVALUATORS.register("worst_case", smoke={"members": [{"name": "clean"}, {"name": "clean", "batch_size": 2}]})
@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """An image survives when it survives every member; each member sees only the survivors of the last one.

    This is not the minimum of the members' accuracies: two attacks that break different images add up. The
    order changes the cost alone (cheap members first), unless a member's noise depends on its batches.

    Args:
        members: evaluators, at least one.

    Reference: the pointwise worst case of Croce and Hein, ICML 2020.
    """

    members: list[Evaluator]

    def __post_init__(self) -> None:
        if not self.members:
            raise RobustCliError("evaluator worst_case: members is empty; name at least one evaluator")

    @property
    def allows_randomness(self) -> bool:
        """Whether some member is made for models whose logits vary from call to call."""
        return any(getattr(member, "allows_randomness", False) for member in self.members)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Tensor:
        survives = torch.ones(len(x), dtype=torch.bool)
        for member in self.members:
            index = survives.nonzero().flatten()
            if not len(index):
                break
            survives[index] = member(model, x[index], y[index], threat, rng.rows(index))
        return survives
