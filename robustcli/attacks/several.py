"""Attacks on several threats at once, for training: their images together, the worst, one in turn, or one path.

None is registered: what they return lies in the union of the threat sets, so an evaluation cannot name them
(evaluators/under.py is its way to several threats).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.crafting import ascend
from robustcli.attacks.losses import LOSSES, cross_entropy
from robustcli.attacks.worst import Worst
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class Aimed:
    """An attack with a threat of its own.

    Args:
        threat: where it searches; None is the threat that it is called with.
    """

    attack: Attack
    threat: ThreatModel | None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return self.attack(model, x, y, self.threat or threat, rng)


@dataclass(frozen=True, kw_only=True)
class Each:
    """What every attack finds: as many blocks of n images as there are attacks, (m n, c, h, w)."""

    attacks: tuple[Attack, ...]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return torch.cat([attack(model, x, y, threat, rng) for attack in self.attacks])


@dataclass(frozen=True, kw_only=True)
class WorstOf:
    """Of every image the version whose cross-entropy is highest; with one attack nothing is scored."""

    attacks: tuple[Attack, ...]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        if len(self.attacks) == 1:
            return self.attacks[0](model, x, y, threat, rng)
        worst = Worst.of(x)
        for attack in self.attacks:
            points = attack(model, x, y, threat, rng)
            with torch.no_grad():
                worst.see(points, cross_entropy(model(points), y))
        return worst.points


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """One of the attacks on the whole batch.

    Args:
        turn: which one.
    """

    attacks: tuple[Attack, ...]
    turn: int = 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return self.attacks[self.turn](model, x, y, threat, rng)


@dataclass(frozen=True, kw_only=True)
class SteepestOf:
    """Multi steepest descent: every step goes from one point, in the threat that raises the cross-entropy most.

    One gradient suggests a step in each threat, projected there; of every image the step that leads to the
    highest cross-entropy is made. A step costs one forward, one input-backward and one forward per threat. A
    point that the last step left in one threat may lie outside the others.

    Args:
        threats: None is the threat that it is called with.
        step_sizes: one for each, in the unit of its eps; None is a quarter of that.
        start: "random", in the threat that it is called with, or "clean".
    """

    threats: tuple[ThreatModel | None, ...]
    step_sizes: tuple[float | None, ...]
    steps: int
    start: str

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        x_adv = threat.sample(x, rng) if self.start == "random" else x
        for _ in range(self.steps):
            grad, _, _ = ascend(model, x_adv, LOSSES["ce"], y)
            steps = [
                self._step(own or threat, step_size, x_adv, grad, x)
                for own, step_size in zip(self.threats, self.step_sizes, strict=True)
            ]
            if len(steps) == 1:
                x_adv = steps[0]
                continue
            worst = Worst.of(x)
            for points in steps:
                with torch.no_grad():
                    worst.see(points, cross_entropy(model(points), y))
            x_adv = worst.points
        return x_adv

    @staticmethod
    def _step(threat: ThreatModel, step_size: float | None, x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
        length = threat.radius / 4 if step_size is None else step_size
        return threat.project(x_adv + threat.ascent(grad, x_adv, length), x)
