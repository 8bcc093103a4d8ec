"""Attacks on several threat models, for training: all versions, the worst one, one in turn, or one joint path.

They are not registered, because their results lie in the union of the threat sets; evaluations use the evaluators
under and worst_case instead.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.ascent import Look, gradient_ascent, steepest, step_length
from robustcli.attacks.best_so_far import BestSoFar
from robustcli.attacks.gradient import Objective
from robustcli.attacks.losses import LOSSES, cross_entropy
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class WithThreat(Attack):
    """An attack with its own threat model.

    Args:
        threat: None means the threat model of the call.
    """

    attack: Attack
    threat: ThreatModel | None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return self.attack(model, x, y, self.threat or threat, rng)


@dataclass(frozen=True, kw_only=True)
class Concatenate(Attack):
    """The results of all m attacks, concatenated: (m n, c, h, w)."""

    attacks: tuple[Attack, ...]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return torch.cat([attack(model, x, y, threat, rng) for attack in self.attacks])


@dataclass(frozen=True, kw_only=True)
class WorstOf(Attack):
    """The version of every image with the highest cross-entropy; a single attack needs no scores."""

    attacks: tuple[Attack, ...]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        if len(self.attacks) == 1:
            return self.attacks[0](model, x, y, threat, rng)
        best = BestSoFar.start(x)
        for attack in self.attacks:
            points = attack(model, x, y, threat, rng)
            with torch.no_grad():
                best.update(points, cross_entropy(model(points), y))
        return best.points


@dataclass(frozen=True, kw_only=True)
class Alternate(Attack):
    """One of several attacks on the whole batch.

    Args:
        turn: number of the attack to use.
    """

    attacks: tuple[Attack, ...]
    turn: int = 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        return self.attacks[self.turn](model, x, y, threat, rng)

    def in_turn(self, number: int) -> "Alternate":
        return replace(self, turn=number % len(self.attacks))


@dataclass(frozen=True, kw_only=True)
class Msd(Attack):
    """Multi steepest descent: every step is the one of all threat models that raises the cross-entropy most.

    One gradient gives a step in each threat model, projected there; each image takes the step with the highest
    cross-entropy. A step costs one forward, one backward to the input and one forward per threat model. The result lies
    in the threat set of the last step and may lie outside the others.

    Args:
        threats: None means the threat model of the call.
        step_sizes: one per threat model, in the unit of its eps; None is a quarter of it.
        start: "random", in the threat set of the call, or "clean".

    Reference: Maini, Wong and Kolter, ICML 2020.
    """

    threats: tuple[ThreatModel | None, ...]
    step_sizes: tuple[float | None, ...]
    steps: int
    start: str

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        moves = [
            steepest(own, x, step_length(step_size, own))
            for own, step_size in zip((own or threat for own in self.threats), self.step_sizes, strict=True)
        ]

        def move(look: Look) -> Tensor:
            if len(moves) == 1:
                return moves[0](look)
            best = BestSoFar.start(x)
            for candidate in moves:
                points = candidate(look)
                with torch.no_grad():
                    best.update(points, cross_entropy(model(points), y))
            return best.points

        start = threat.sample(x, rng) if self.start == "random" else x
        return gradient_ascent(Objective.at(model, x, y, LOSSES["ce"]), start, self.steps, move)
