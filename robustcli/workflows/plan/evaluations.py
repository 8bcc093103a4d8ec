"""Count the passes of evaluations: every attack runs a few steps on some images, and its passes are extrapolated.

Passes do not depend on the network, so they are counted on a tiny one. They depend on the robust accuracy, which is
unknown before training and assumed: an attack with early exit spends few passes on images that it breaks, and all of
its passes on those that survive.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.crafting import crafting
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.settings import length_of, with_settings
from robustcli.data.splits import Data
from robustcli.evaluation.gather import gather
from robustcli.evaluation.passes import count_passes
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.evaluators.attack import Attacked
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.plan.result import Bounds

# A share of the radius so small that no image breaks, so the attack spends all of its passes on every image.
_HARMLESS = 1e-4
# Steps of the two short attacks that count passes, and images that they run on.
_FEW, _MORE = 5, 10
_COUNTED = 2
# Passes that an attack with early exit is assumed to spend on an image that it breaks.
BROKEN_PASSES = 20


@dataclass(frozen=True)
class StageCost:
    """Passes of one attack of an evaluation.

    Args:
        name: name of its stage.
        forwards, gradients: passes for an image that survives.
        exits_early: the attack stops for images that it breaks.
        sample: maximum number of survivors to attack; None: all.
    """

    name: str
    forwards: float
    gradients: float
    exits_early: bool
    sample: int | None = None

    @property
    def of_survivor(self) -> float:
        """Passes of both kinds for an image that survives."""
        return self.forwards + self.gradients

    @property
    def of_broken(self) -> float:
        """Passes of both kinds for an image that breaks."""
        return min(self.of_survivor, BROKEN_PASSES) if self.exits_early else self.of_survivor


@dataclass(frozen=True)
class EvaluationCost:
    """Passes of one evaluation.

    Args:
        images: number of images.
        stages: passes of its attacks.
        notes: assumptions to report.
    """

    images: int
    stages: tuple[StageCost, ...]
    notes: tuple[str, ...] = ()

    def passes(self, robust: Bounds) -> Bounds:
        """Return the passes of both kinds of all images, for an assumed robust accuracy."""
        return Bounds(self._passes(robust.low), self._passes(robust.high))

    def _passes(self, robust: float) -> float:
        """Return the passes for one assumed robust accuracy.

        Half of the other images are assumed to be misclassified without an attack, and the rest to be broken by the
        first attack.
        """
        survivors, broken = robust * self.images, (1 - robust) / 2 * self.images
        total = float(self.images)
        for stage in self.stages:
            attacked = survivors if stage.sample is None else min(survivors, stage.sample)
            total += attacked * stage.of_survivor + broken * stage.of_broken
            broken = 0.0
        return total


class Probe:
    """Count the passes of attacks on a network, with its predictions as labels.

    Args:
        network: network in eval mode.
        x: images (n, c, h, w).
        threat: threat model of the spec.
    """

    def __init__(self, network: nn.Module, x: Tensor, threat: ThreatModel) -> None:
        self.network, self.x, self.threat = network, x[:_COUNTED], threat
        with torch.no_grad():
            logits = network(self.x)
        self.y, self.classes = logits.argmax(1), logits.shape[1]

    @classmethod
    def tiny(cls, data: Data, threat: ThreatModel) -> "Probe":
        """Return a probe with a linear network for some test images."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = nn.Linear(16 * data.shape.channels, data.shape.classes)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), layer).eval().requires_grad_(False)
        return cls(network, data.evaluation("test", _COUNTED)[0].cpu(), threat)

    def count(self, evaluator: Evaluator, images: int, robust: float) -> EvaluationCost:
        """Count the passes of an evaluation.

        Args:
            images: number of images of the evaluation.
            robust: assumed share of images that survive; some attacks run on a sample of them.
        """
        threat = evaluator.threat or self.threat
        context = AttackContext(threat, (self.x.shape[1], self.x.shape[2], self.x.shape[3]), self.classes)
        stages, notes = _measurable(evaluator.stages(context))
        costs = []
        with warnings.catch_warnings():
            # Warnings about accuracies do not matter here.
            for category in (UserWarning, RuntimeWarning):
                warnings.simplefilter("ignore", category)
            for stage in stages:
                own = stage.threat or threat
                if not own.radius:
                    continue
                forwards, gradients = self._passes(stage, own)
                exits_early = self._exits_early(_shortened(stage.attack, _FEW), own)
                survivors = max(1, round(robust * images))
                some = [chosen.of(survivors) for chosen in (stage.subset, stage.nearest) if chosen is not None]
                sample = min(survivors, sum(some)) if some else stage.sample
                costs.append(StageCost(stage.name, forwards, gradients, exits_early, sample))
        return EvaluationCost(images, tuple(costs), notes)

    def _passes(self, stage: Stage, threat: ThreatModel) -> tuple[float, float]:
        """Return the passes of the whole attack on one image, extrapolated linearly in its steps."""
        whole = length_of(stage.attack)
        if whole is None:
            return self._gathered(stage, stage.attack, threat)
        (forwards, of_a_step), (gradients, gradients_of_a_step) = self.lines(stage, threat)
        return forwards + whole * of_a_step, gradients + whole * gradients_of_a_step

    def lines(self, stage: Stage, threat: ThreatModel) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the forward passes for an image that survives, without steps and for each step; and the gradients."""
        few, more = (self._gathered(stage, _shortened(stage.attack, steps), threat) for steps in (_FEW, _MORE))
        slopes = [(after - before) / (_MORE - _FEW) for before, after in zip(few, more, strict=True)]
        return (few[0] - _FEW * slopes[0], slopes[0]), (few[1] - _FEW * slopes[1], slopes[1])

    def _gathered(self, stage: Stage, attack: Attack, threat: ThreatModel) -> tuple[float, float]:
        """Return the forward passes and gradients of an attack on an image that it cannot break or stop early at."""
        # Corruptions, which search nothing, do not keep to a smaller radius.
        own = threat.scaled(_HARMLESS) if attack.is_search else threat
        probed = replace(stage, attack=attack, sample=None, subset=None, nearest=None, threat=own, surrogate=None)
        with no_early_exit():
            (record,) = gather(_Only(probed, _COUNTED), self.network, self.x, self.y, self.threat, self._rng()).stages
        entered = max(record.entered, 1)
        return record.forwards / entered, record.gradients / entered

    def _exits_early(self, attack: Attack, threat: ThreatModel) -> bool:
        """Return True if the attack spends fewer passes on images that are misclassified from the start."""
        single = with_settings(attack, **dict.fromkeys(attack.repeats, 1))
        spent = []
        for labels in (self.y, (self.y + 1) % self.classes):
            with crafting(self.network, "eval"), count_passes(self.network) as passes:
                single(self.network, self.x.clone(), labels, threat.scaled(_HARMLESS), self._rng())
            spent.append(passes.forwards + passes.gradients)
        return spent[1] < spent[0]

    def _rng(self) -> IndexedNoise:
        return IndexedNoise(0, torch.arange(len(self.x), device=self.x.device))


def seconds_of_a_pass(network: nn.Module, x: Tensor) -> float:
    """Return the seconds of a pass of one image in PGD, forwards or backwards, with what a step does besides.

    Args:
        network: network in eval mode.
        x: images (n, c, h, w) of one batch.
    """
    with torch.no_grad():
        y = network(x).argmax(1)
    attacked = Attacked(attack=Pgd(steps=_MORE), batch_size=len(x))
    threat = ThreatModel("linf", Fraction(1)).scaled(_HARMLESS)
    rng = IndexedNoise(0, torch.arange(len(x), device=x.device))
    # The first attack allocates memory and chooses kernels.
    _, (stage,) = (gather(attacked, network, x, y, threat, rng).stages for _ in range(2))
    return stage.seconds / (stage.forwards + stage.gradients)


@dataclass(frozen=True)
class _Only(Evaluator):
    """Evaluator with a single stage."""

    stage: Stage
    batch_size: int

    def stages(self, context: AttackContext) -> list[Stage]:
        return [self.stage]


def _measurable(stages: Sequence[Stage]) -> tuple[list[Stage], tuple[str, ...]]:
    """Replace stages that cannot be shortened by similar ones; add notes."""
    found: list[Stage] = []
    notes = []
    for stage in stages:
        found += stage.similar or (stage,)
        if stage.similar:
            names = ", ".join(similar.name for similar in stage.similar)
            notes.append(f"{stage.name}: estimated from {names} of robustcli, which are usually faster")
        if stage.sample is not None:
            notes.append(f"sample_first: assumes that none of the {stage.sample} sampled images break")
    return found, tuple(dict.fromkeys(notes))


def _shortened(attack: Attack, steps: int) -> Attack:
    """Return the attack with another number of steps or queries, or unchanged if it has neither."""
    return with_settings(attack, **{attack.length: steps})
