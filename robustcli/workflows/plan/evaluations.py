"""Estimate the cost of evaluations: every attack runs a few steps on some images, and its passes are extrapolated.

The cost depends on the robust accuracy, which is unknown before training, so it is assumed. An attack with early exit
spends few passes on images that it breaks, and all of its passes on those that survive.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.crafting import crafting
from robustcli.attacks.settings import length_of, with_settings
from robustcli.evaluation.gather import gather
from robustcli.evaluation.passes import count_passes
from robustcli.evaluators import AttackContext, Evaluator, Stage, chunks
from robustcli.measuring.timing import wall
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.plan.result import Bounds

# A share of the radius so small that no image breaks, so the attack spends all of its passes on every image.
_HARMLESS = 1e-4
# Steps of the two short attacks that count passes; the longer one is also timed.
_FEW, _MORE = 5, 10
_COUNTED_IMAGES = 2
# An attack is timed on at most as many images as take this many seconds for one forward and backward pass.
_PATIENCE = 0.5
# Passes that an attack with early exit is assumed to spend on an image that it breaks.
BROKEN_PASSES = 20


@dataclass(frozen=True)
class StageCost:
    """Cost of one attack of an evaluation.

    Args:
        name: name of its stage.
        forwards, gradients: passes for an image that survives.
        seconds: seconds for an image that survives.
        exits_early: the attack stops for images that it breaks.
        sample: maximum number of survivors to attack; None: all.
    """

    name: str
    forwards: float
    gradients: float
    seconds: float
    exits_early: bool
    sample: int | None

    @property
    def passes(self) -> float:
        """Passes of both kinds for an image that survives."""
        return self.forwards + self.gradients

    def of_broken(self) -> float:
        """Return the cost of an image that breaks, as a share of the cost of one that survives."""
        return min(1.0, BROKEN_PASSES / self.passes) if self.exits_early and self.passes else 1.0


@dataclass(frozen=True)
class EvaluationCost:
    """Cost of one evaluation.

    Args:
        images: number of images.
        clean: seconds of a forward pass of one image.
        stages: costs of its attacks.
        notes: assumptions to report.
    """

    images: int
    clean: float
    stages: tuple[StageCost, ...]
    notes: tuple[str, ...] = ()

    def seconds(self, robust: Bounds) -> Bounds:
        """Return the seconds of the evaluation for an assumed robust accuracy."""
        times = [stage.seconds for stage in self.stages]
        return Bounds(*(self._total(share, self.clean, times) for share in (robust.low, robust.high)))

    def passes(self, robust: Bounds) -> Bounds:
        """Return the passes of both kinds, of all images together."""
        passes = [stage.passes for stage in self.stages]
        return Bounds(*(self._total(share, 1.0, passes) for share in (robust.low, robust.high)))

    def _total(self, robust: float, clean: float, costs: Sequence[float]) -> float:
        """Return the cost of all images, from the cost of each stage for an image that survives.

        Half of the images that do not survive are assumed to be misclassified without an attack, and the rest to be
        broken by the first attack.
        """
        total, survivors = clean * self.images, robust * self.images
        broken = (1 + robust) / 2 * self.images - survivors
        for stage, cost in zip(self.stages, costs, strict=True):
            attacked = survivors if stage.sample is None else min(survivors, stage.sample)
            total += cost * (attacked + broken * stage.of_broken())
            broken = 0.0
        return total


class Probe:
    """Measure evaluations, with the predictions of the network as labels.

    Args:
        network: network in eval mode.
        x: images (n, c, h, w).
        threat: threat model of the spec.
    """

    def __init__(self, network: nn.Module, x: Tensor, threat: ThreatModel) -> None:
        self.network, self.x, self.threat = network, x, threat
        self.device = x.device
        start = wall(self.device)
        with torch.no_grad():
            logits = torch.cat([network(x[part]) for part in chunks(len(x), 250)])
        self.clean = (wall(self.device) - start) / len(x)
        self.y, self.classes = logits.argmax(1), logits.shape[1]
        few = x[:4]
        self._one_pass(few)
        start = wall(self.device)
        self._one_pass(few)
        self.affordable = max(4, int(_PATIENCE / max((wall(self.device) - start) / len(few), 1e-9)))

    def measure(self, evaluator: Evaluator, images: int, robust: float) -> EvaluationCost:
        """Measure an evaluation.

        Args:
            images: number of images of the evaluation.
            robust: share of images that probably survive; attacks on fewer images take longer per image.
        """
        with warnings.catch_warnings():
            # Warnings about accuracies do not matter here.
            for category in (UserWarning, RuntimeWarning):
                warnings.simplefilter("ignore", category)
            threat = evaluator.threat or self.threat
            context = AttackContext(threat, (self.x.shape[1], self.x.shape[2], self.x.shape[3]), self.classes)
            stages, notes = _measurable(evaluator.stages(context))
            survivors = max(1, round(robust * images))
            costs = [self._stage(stage, own, survivors) for stage in stages if (own := stage.threat or threat).radius]
            return EvaluationCost(images, self.clean, tuple(costs), notes)

    def _stage(self, stage: Stage, threat: ThreatModel, survivors: int) -> StageCost:
        forwards, gradients = self._passes(stage, threat)
        points = survivors * stage.attack.side_by_side
        batch = min(stage.batch_size or points, points, self.affordable, len(self.x))
        # With one restart and one target. It makes only some of the passes; all are assumed to take the same time.
        timed = self._gathered(stage, _single(_shortened(stage.attack, _MORE)), threat, batch)
        return StageCost(
            name=stage.name,
            forwards=forwards,
            gradients=gradients,
            seconds=timed.seconds * ((forwards + gradients) / max(sum(timed.passes), 1e-9)),
            exits_early=self._exits_early(_single(_shortened(stage.attack, _FEW)), threat),
            sample=stage.sample if stage.subset is None else sum(stage.subset.sizes(survivors)),
        )

    def _passes(self, stage: Stage, threat: ThreatModel) -> tuple[float, float]:
        """Return the passes of the whole attack on one image, extrapolated linearly in its steps."""
        whole = length_of(stage.attack)
        if whole is None:
            return self._gathered(stage, stage.attack, threat, _COUNTED_IMAGES).passes
        (forwards, of_a_step), (gradients, gradients_of_a_step) = self.lines(stage, threat)
        return forwards + whole * of_a_step, gradients + whole * gradients_of_a_step

    def lines(self, stage: Stage, threat: ThreatModel) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the forward passes for an image that survives, without steps and for each step; and the gradients."""
        few, more = (
            self._gathered(stage, _shortened(stage.attack, steps), threat, _COUNTED_IMAGES).passes
            for steps in (_FEW, _MORE)
        )
        slopes = [(after - before) / (_MORE - _FEW) for before, after in zip(few, more, strict=True)]
        return (few[0] - _FEW * slopes[0], slopes[0]), (few[1] - _FEW * slopes[1], slopes[1])

    def _gathered(self, stage: Stage, attack: Attack, threat: ThreatModel, images: int) -> "_Found":
        """Run one short attack on images that it cannot break, and return its cost per image."""
        harmless = threat.scaled(_HARMLESS)
        probed = replace(
            stage,
            attack=attack,
            sample=None,
            subset=None,
            threat=harmless,
            surrogate=None if stage.surrogate is None else stage.surrogate.uncompiled(),
        )
        only = _Only(probed, stage.batch_size or images)
        x, y = self.x[:images], self.y[:images]
        rng = IndexedNoise(0, torch.arange(len(x), device=self.device))
        (record,) = gather(only, self.network, x, y, self.threat, rng).stages
        entered = max(record.entered, 1)
        return _Found((record.forwards / entered, record.gradients / entered), record.seconds / entered)

    def _exits_early(self, attack: Attack, threat: ThreatModel) -> bool:
        """Return True if the attack spends fewer passes on images that are misclassified from the start."""
        x, y = self.x[:_COUNTED_IMAGES], self.y[:_COUNTED_IMAGES]
        spent = []
        for labels in (y, (y + 1) % self.classes):
            rng = IndexedNoise(0, torch.arange(len(x), device=self.device))
            with crafting(self.network, "eval"), count_passes(self.network) as passes:
                attack(self.network, x.clone(), labels, threat.scaled(_HARMLESS), rng)
            spent.append(passes.forwards + passes.gradients)
        return spent[1] < spent[0]

    def _one_pass(self, x: Tensor) -> None:
        x = x.clone().requires_grad_()
        torch.autograd.grad(self.network(x).sum(), x)


@dataclass(frozen=True)
class _Found:
    """Forward and gradient passes, and seconds, per image."""

    passes: tuple[float, float]
    seconds: float


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


def _single(attack: Attack) -> Attack:
    """Return the attack with at most one restart and one target."""
    return with_settings(attack, **dict.fromkeys(attack.repeats, 1))
