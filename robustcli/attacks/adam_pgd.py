"""Projected Adam: equal steps in every pixel at first, smaller ones where gradients disagree."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.adam import Adam
from robustcli.attacks.ascent import Look, gradient_ascent
from robustcli.attacks.gradient import Objective
from robustcli.attacks.losses import LOSSES
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count, Positive, Size
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# As released; the gradients of robust networks are so small that the usual 1e-8 would matter.
_TINY = 1e-9


@ATTACKS.register("adam_pgd", passes=(10, 10, 0), smoke={"steps": 2, "after": (1,)})
@dataclass(frozen=True, kw_only=True)
class AdamPgd(Attack):
    """Ascent by Adam on the image, from a random point of the threat set, each step projected back into it.

    The first steps are much longer than the diameter of the set, so they end in its corners; the last ones are short.
    The point after the last step is returned.

    When to use: where the size of gradients matters and not only their sign, for example in norms other than linf.

    First setting: the defaults.

    Args:
        steps: gradient steps; 0 returns the start.
        step_sizes: successive learning rates of Adam, in pixels of [0, 1] for every norm.
        after: steps done before each later learning rate; one fewer than step_sizes.
        loss: "ce" with the labels, or "kl" from the clean prediction, whose gradient is that of the cross-entropy with
            predicted class shares.

    Reference: Gowal et al., 2020, arXiv 2010.03593, and its released code; Adam: Kingma and Ba, ICLR 2015.
    """

    steps: Size = 10
    step_sizes: tuple[Positive, ...] = (0.1, 0.01)
    after: tuple[Count, ...] = (5,)
    loss: Literal["ce", "kl"] = "ce"

    def __post_init__(self) -> None:
        if len(self.step_sizes) != len(self.after) + 1:
            raise RobustCliError(
                f"attack adam_pgd: {len(self.step_sizes)} step_sizes with {len(self.after)} numbers in 'after'; "
                "expected one more of step_sizes"
            )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        objective = Objective.at(model, x, y, LOSSES[self.loss])
        start, adam = threat.project(threat.sample(x, rng), x), Adam.start(x, tiny=_TINY)

        def move(look: Look) -> Tensor:
            size = self.step_sizes[sum(look.step >= done for done in self.after)]
            return threat.project(look.points + size * adam.direction(look.grad), x)

        return gradient_ascent(objective, start, self.steps, move)
