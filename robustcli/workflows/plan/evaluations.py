"""What the evaluations of a spec take: every attack makes a few of its steps on a batch, and is counted to its end.

How many images an attack has to go through to the end depends on how robust the network will be, which nobody knows
before; so a share of survivors is assumed. An image that breaks costs next to nothing beside one that survives, where
the attack lets go of it.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.crafting import crafting
from robustcli.evaluation.evidence import gather
from robustcli.evaluation.passes import count_passes
from robustcli.evaluators import AttackContext, Evaluator, Stage, chunks
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.autoattack_package import Package
from robustcli.measuring.clocks import Seconds, now
from robustcli.measuring.untimed import peak_bytes
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

# So small a share of the radius that no image breaks: each takes all that the attack has for a survivor.
_HARMLESS = 1e-4
# Steps of the two short attacks from which passes are counted, and the fewest of the one that is timed.
_FEW, _MORE = 5, 10
_COUNTED_IMAGES = 2
# An attack is timed on as many images as one forward and backward of takes so many seconds, or on a whole batch.
_PATIENCE = 1.0
# What the fields of attacks are called that say how long they are.
_LENGTHS = ("steps", "queries")
# An image that breaks does so within so many forwards and gradients, if the attack lets go of it then.
BROKEN_PASSES = 20


@dataclass(frozen=True)
class StageCost:
    """One attack of an evaluation.

    Args:
        name: of its stage.
        forwards, gradients: of an image that survives.
        seconds: of such an image.
        lets_go: whether an image that breaks leaves.
        sample: the most survivors that it attacks; None is all.
    """

    name: str
    forwards: float
    gradients: float
    seconds: Seconds
    lets_go: bool
    sample: int | None

    def of_broken(self) -> float:
        """What an image that breaks costs, as a share of one that survives."""
        passes = self.forwards + self.gradients
        return min(1.0, BROKEN_PASSES / passes) if self.lets_go and passes else 1.0


@dataclass(frozen=True)
class EvaluationCost:
    """One evaluation.

    Args:
        images: of it.
        clean: seconds of a forward of one image.
        stages: its attacks.
        notes: what a reader of the forecast must know.
        batch_size, peak: images at once, and bytes that a pass of them takes beside the network.
    """

    images: int
    clean: Seconds
    stages: tuple[StageCost, ...]
    notes: tuple[str, ...] = ()
    batch_size: int = 0
    peak: int = 0

    def passes(self) -> tuple[float, float]:
        """Forwards and gradients of an image that survives all attacks."""
        return 1 + sum(stage.forwards for stage in self.stages), sum(stage.gradients for stage in self.stages)

    def seconds(self, robust: float) -> Seconds:
        """All of it, if this share of the images survives.

        As many are taken to be right when clean as lie in the middle between that share and all; the first attack
        breaks those that break.
        """
        total, survivors = self.clean * self.images, robust * self.images
        broken = (1 + robust) / 2 * self.images - survivors
        for stage in self.stages:
            attacked = survivors if stage.sample is None else min(survivors, stage.sample)
            total = total + stage.seconds * (attacked + broken * stage.of_broken())
            broken = 0.0
        return total


class Probe:
    """Measures evaluations on images that the network classifies as labelled.

    Args:
        network: in eval mode.
        x: (n, c, h, w) images.
        threat: of the spec.
    """

    def __init__(self, network: nn.Module, x: Tensor, threat: ThreatModel) -> None:
        self.network, self.x, self.threat = network, x, threat
        self.device = x.device
        with torch.no_grad():
            logits = torch.cat([network(x[part]) for part in chunks(len(x), 250)])
        self.y, self.classes = logits.argmax(1), logits.shape[1]
        few = x[:4]
        self._one_pass(few)
        begun = now(self.device)
        self._one_pass(few)
        self.affordable = max(4, int(_PATIENCE / max((now(self.device) - begun).wall / len(few), 1e-9)))

    def measure(self, evaluator: Evaluator, images: int, robust: float) -> EvaluationCost:
        """What an evaluation of so many images consists of.

        Args:
            robust: the share of them that is likely to survive: attacks on few images take longer for each.
        """
        with warnings.catch_warnings():
            # They are about accuracies, and none is told here.
            for category in (UserWarning, RuntimeWarning):
                warnings.simplefilter("ignore", category)
            return self._measured(evaluator, images, max(1, round(robust * images)))

    def _measured(self, evaluator: Evaluator, images: int, survivors: int) -> EvaluationCost:
        threat = evaluator.threat or self.threat
        context = AttackContext(threat, (self.x.shape[1], self.x.shape[2], self.x.shape[3]), self.classes)
        stages, notes = _ours(evaluator.stages(context), context)
        costs = []
        for stage in stages:
            own = stage.threat or threat
            if own.radius:
                costs.append(self._stage(stage, own, survivors))
        batch = min(evaluator.batch_size, images)
        peak = self._peak(batch, has_gradients=any(stage.gradients for stage in costs))
        return EvaluationCost(images, self._clean(evaluator, images), tuple(costs), notes, batch, peak)

    def _peak(self, batch: int, *, has_gradients: bool) -> int:
        """Of one pass of a batch, told from some images: it grows in a straight line with them."""
        x = self.x[: min(batch, self.affordable)]
        with torch.set_grad_enabled(has_gradients):
            run = partial(self._one_pass if has_gradients else self.network, x)
            return round(peak_bytes(run, self.device) * batch / len(x))

    def _clean(self, evaluator: Evaluator, images: int) -> Seconds:
        x = self.x[: min(evaluator.batch_size, images, self.affordable)]
        with torch.no_grad():
            self.network(x)
            begun = now(self.device)
            self.network(x)
        return (now(self.device) - begun) * (1 / len(x))

    def _stage(self, stage: Stage, threat: ThreatModel, survivors: int) -> StageCost:
        few, more = (_shortened(stage.attack, steps) for steps in (_FEW, _MORE))
        passes = self._passes(stage, few, more, threat)
        points = survivors * stage.attack.side_by_side
        batch = min(stage.batch_size or points, points, self.affordable, len(self.x))
        timed = self._timed(stage, threat, batch)
        return StageCost(
            name=stage.name,
            forwards=passes[0],
            gradients=passes[1],
            # What is timed makes some of the passes, and each of its passes takes as long.
            seconds=timed.seconds * (sum(passes) / max(sum(timed.passes), 1e-9)),
            lets_go=self._lets_go(_single(few), threat),
            sample=stage.sample,
        )

    def _timed(self, stage: Stage, threat: ThreatModel, images: int) -> "_Found":
        """A short attack that is long enough for a clock, with one try and one target."""
        found = self._gathered(stage, _single(_shortened(stage.attack, _FEW)), threat, images)
        whole, taken = _length_of(stage.attack), found.seconds.wall * images
        if whole is None or taken > _PATIENCE / 2:
            return found
        steps = min(whole, math.ceil(_FEW * _PATIENCE / max(taken, 1e-9)))
        return self._gathered(stage, _single(_shortened(stage.attack, max(_FEW, steps))), threat, images)

    def _passes(self, stage: Stage, few: Attack, more: Attack, threat: ThreatModel) -> tuple[float, float]:
        """Forwards and gradients of the whole attack on one image: they grow in a straight line with its steps."""
        whole = _length_of(stage.attack)
        first = self._gathered(stage, few, threat, _COUNTED_IMAGES).passes
        if whole is None:
            return first
        second = self._gathered(stage, more, threat, _COUNTED_IMAGES).passes
        share = (whole - _FEW) / (_MORE - _FEW)
        return first[0] + share * (second[0] - first[0]), first[1] + share * (second[1] - first[1])

    def _gathered(self, stage: Stage, attack: Attack, threat: ThreatModel, images: int) -> "_Found":
        """One short attack on images that it cannot break; per image."""
        harmless = threat.scaled(_HARMLESS)
        probed = replace(stage, attack=attack, sample=None, threat=harmless, surrogate=_uncompiled(stage.surrogate))
        only = _Only(probed, stage.batch_size or images)
        x, y = self.x[:images], self.y[:images]
        rng = IndexedNoise(0, torch.arange(len(x), device=self.device))
        begun = now(self.device)
        evidence = gather(only, self.network, x, y, self.threat, rng)
        taken = now(self.device) - begun
        record = evidence.stages[0]
        # Of the whole call the attack is a part: the clean images and a copy to search with are not in it.
        share = record.seconds / max(taken.wall, 1e-9)
        entered = max(record.entered, 1)
        return _Found((record.forwards / entered, record.gradients / entered), taken * (share / entered))

    def _lets_go(self, attack: Attack, threat: ThreatModel) -> bool:
        """Whether an image that is misclassified from the beginning costs less than one that never is."""
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
    """Of one image: forwards and gradients, and seconds."""

    passes: tuple[float, float]
    seconds: Seconds


@dataclass(frozen=True)
class _Only(Evaluator):
    """An evaluator of one stage."""

    stage: Stage
    batch_size: int

    def stages(self, context: AttackContext) -> list[Stage]:
        return [self.stage]


def _ours(stages: Sequence[Stage], context: AttackContext) -> tuple[list[Stage], tuple[str, ...]]:
    """Stages of attacks that can be cut short; the package of AutoAttack's authors cannot."""
    found: list[Stage] = []
    notes = []
    for stage in stages:
        if isinstance(stage.attack, Package):
            known: Any = stage.attack  # Its words are checked where an evaluator makes it.
            native = AutoAttack(version=known.version, attacks=known.attacks)
            found += native.stages(context)
            notes.append("engine reference is told by the native engine, which is mostly the faster one")
        else:
            found.append(stage)
        if stage.sample is not None:
            notes.append(f"screen: as if none of the {stage.sample} sampled broke")
    return found, tuple(dict.fromkeys(notes))


def _length_of(attack: Attack) -> int | None:
    """Its steps or queries; None where its length is set by something else."""
    return next((getattr(attack, name) for name in _settings(attack) if name in _LENGTHS), None)


def _settings(attack: Any) -> list[str]:
    """The names of its settings."""
    return [item.name for item in fields(attack)] if is_dataclass(attack) else []


def _shortened(attack: Any, steps: int) -> Attack:
    """The attack with so many steps or queries, or itself where it has none."""
    return _replaced(attack, {name: steps for name in _settings(attack) if name in _LENGTHS})


def _single(attack: Any) -> Attack:
    """The attack with one try and one target at most."""
    return _replaced(attack, {name: 1 for name in ("restarts", "targets") if getattr(attack, name, 0) > 1})


def _replaced(attack: Any, changes: dict[str, int]) -> Attack:
    changed: Attack = replace(attack, **changes) if changes else attack
    return changed


def _uncompiled(surrogate: Callable[[nn.Module], nn.Module] | None) -> Callable[[nn.Module], nn.Module] | None:
    """The same without compiling, which takes a minute and is stated nowhere else."""
    if isinstance(surrogate, partial) and surrogate.keywords.get("is_compiled"):
        return partial(surrogate.func, *surrogate.args, **{**surrogate.keywords, "is_compiled": False})
    return surrogate
