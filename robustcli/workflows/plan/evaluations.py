"""Measure the work of evaluations: every attack runs a few steps on some images, and its work is extrapolated.

Neither the passes of an attack nor what it computes in between depend on the network, so both are measured on a tiny
one if passes of the network take long. The work depends on the robust accuracy, which is unknown before training and
assumed: an attack with early exit spends few passes on images that it breaks, and all of its passes on those that
survive.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.active_set import no_early_exit
from robustcli.attacks.crafting import crafting
from robustcli.attacks.settings import length_of, with_settings
from robustcli.data.splits import Data
from robustcli.evaluation.passes import count_passes
from robustcli.evaluation.run_attack import run_attack
from robustcli.evaluation.searches import Searches
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.runtime.precision import full_precision
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.plan.result import Bounds
from robustcli.workflows.plan.work import NO_TIMES, PassTimes, Work

# A share of the radius so small that no image breaks, so the attack spends all of its passes on every image.
_HARMLESS = 1e-4
# Minimum number of steps of the short attacks that are measured, and their share of the whole attack; the second takes
# twice as many.
_FEW, _SHARE = 5, 1 / 20
# Images on which passes are counted without being timed.
_COUNTED = 2
# Maximum number of values in the images of a batch whose attacks are timed, on a CPU and on a GPU. In larger batches
# the time grows with the number of images.
_VALUES = {"cpu": 2**16, "cuda": 2**22}
# Maximum seconds of a pass of these images for attacks to be timed on the network itself.
_SHORT = 0.003
# Passes that an attack with early exit is assumed to spend on an image that it breaks.
BROKEN_PASSES = 20


@dataclass(frozen=True)
class StageCost:
    """Work of one attack of an evaluation.

    Args:
        name: name of its stage.
        of_survivor: work for an image that survives.
        exits_early: the attack stops for images that it breaks.
        sample: maximum number of survivors to attack; None: all.
    """

    name: str
    of_survivor: Work
    exits_early: bool
    sample: int | None = None

    @property
    def of_broken(self) -> Work:
        """Work for an image that breaks."""
        passes = self.of_survivor.passes
        return self.of_survivor * (min(1.0, BROKEN_PASSES / passes) if self.exits_early and passes else 1.0)


@dataclass(frozen=True)
class EvaluationCost:
    """Work of one evaluation.

    Args:
        images: number of images.
        batch_size: images in a pass of clean images.
        stages: work of its attacks.
        notes: assumptions to report.
    """

    images: int
    batch_size: int
    stages: tuple[StageCost, ...]
    notes: tuple[str, ...] = ()

    def passes(self, robust: Bounds) -> Bounds:
        """Return the passes of both kinds of all images, for an assumed robust accuracy."""
        return Bounds(self._work(robust.low).passes, self._work(robust.high).passes)

    def seconds(self, robust: Bounds, times: PassTimes) -> Bounds:
        """Return the seconds for an assumed robust accuracy.

        Args:
            times: seconds of passes of the network.
        """
        return Bounds(times.seconds(self._work(robust.low)), times.seconds(self._work(robust.high)))

    def _work(self, robust: float) -> Work:
        """Return the work for one assumed robust accuracy.

        Half of the other images are assumed to be misclassified without an attack, and the rest to be broken by the
        first attack.
        """
        survivors, broken = robust * self.images, (1 - robust) / 2 * self.images
        total = Work(forwards=self.images, forward_calls=math.ceil(self.images / self.batch_size))
        for stage in self.stages:
            attacked = survivors if stage.sample is None else min(survivors, stage.sample)
            total += stage.of_survivor * attacked + stage.of_broken * broken
            broken = 0.0
        return total


def probe_for(network: nn.Module, times: PassTimes, data: Data, threat: ThreatModel) -> "Probe":
    """Return a probe that times attacks on the evaluations of a network.

    Attacks are timed on the network itself if its passes are short: what an attack does in between then takes longer
    than on a tiny network, which leaves more in the caches of the processor.

    Args:
        network: network in eval mode, whose weights need no gradient.
        times: seconds of its passes.
    """
    shape, device = data.shape, next(network.parameters()).device
    most = _VALUES[device.type] // (shape.channels * shape.height * shape.width)
    images = min(max(_COUNTED, most), data.sizes.test)
    if times.per_image(images) * images < _SHORT:
        x, _ = data.evaluation("test", images)
        return Probe(network, x, threat, times)
    tiny = Probe.tiny(data, threat, images)
    return Probe(tiny.network, tiny.x, threat, PassTimes.measured(tiny.network, tiny.x))


class Probe:
    """Measure the work of attacks on a network, with its predictions as labels.

    Args:
        network: network in eval mode.
        x: images (n, c, h, w); the largest batch to attack.
        threat: threat model of the spec.
        times: seconds of passes of the network, if attacks are timed.
    """

    def __init__(self, network: nn.Module, x: Tensor, threat: ThreatModel, times: PassTimes = NO_TIMES) -> None:
        self.network, self.x, self.threat, self.times = network, x, threat, times
        with torch.no_grad():
            logits = network(self.x)
        self.y, self.classes = logits.argmax(1), logits.shape[1]

    @classmethod
    def tiny(cls, data: Data, threat: ThreatModel, images: int = _COUNTED) -> "Probe":
        """Return a probe with a linear network for some test images."""
        shape = data.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = nn.Linear(16 * shape.channels, shape.classes)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), layer).eval().requires_grad_(False)
        x, _ = data.evaluation("test", images)
        return cls(network.to(x.device), x, threat)

    def cost(self, evaluator: Evaluator, images: int, robust: float) -> EvaluationCost:
        """Measure the work of an evaluation.

        Args:
            images: number of images of the evaluation.
            robust: assumed share of images that survive; some attacks run on a sample of them.
        """
        threat = evaluator.threat or self.threat
        context = AttackContext(threat, (self.x.shape[1], self.x.shape[2], self.x.shape[3]), self.classes)
        stages, notes = _measurable(evaluator.stages(context))
        costs = []
        for stage in stages:
            own = stage.threat or threat
            if not own.radius:
                continue
            exits_early = self._exits_early(with_settings(stage.attack, **{stage.attack.length: _FEW}), own)
            survivors = max(1, round(robust * images))
            some = [chosen.of(survivors) for chosen in (stage.subset, stage.nearest) if chosen is not None]
            sample = min(survivors, sum(some)) if some else stage.sample
            attacked = survivors if sample is None else min(survivors, sample)
            costs.append(StageCost(stage.name, self._work(stage, own, attacked), exits_early, sample))
        return EvaluationCost(images, evaluator.batch_size, tuple(costs), notes)

    def _work(self, stage: Stage, threat: ThreatModel, attacked: int) -> Work:
        """Return the work for one of the attacked images, in batches of the size that they will have."""
        batch = stage.batch_size or attacked
        size = math.ceil(attacked / math.ceil(attacked / batch))
        count = min(size, len(self.x))
        # As many points of each image in one pass as in the real batch.
        stage = replace(stage, batch_size=max(count, round(batch * count / size)))
        whole = length_of(stage.attack)
        if whole is None:
            return self._measured(stage, threat, count)
        few = max(_FEW, round(_SHARE * whole))
        short, longer = (
            self._measured(_shortened(stage, steps, **stage.attack.alike), threat, count) for steps in (few, 2 * few)
        )
        of_a_step = (longer + short * -1) * (1 / few)
        return short + of_a_step * (whole - few)

    def without_and_of_a_step(self, stage: Stage, threat: ThreatModel) -> tuple[Work, Work]:
        """Return the work for an image that survives: that of an attack without steps, and that of each step."""
        few, more = (self._measured(_shortened(stage, steps), threat, len(self.x)) for steps in (_FEW, 2 * _FEW))
        of_a_step = (more + few * -1) * (1 / _FEW)
        return few + of_a_step * -_FEW, of_a_step

    def _measured(self, stage: Stage, threat: ThreatModel, count: int) -> Work:
        """Return the work of an attack for one of some images that it can neither break nor stop early at."""
        # Corruptions, which search nothing, do not keep to a smaller radius.
        own = threat.scaled(_HARMLESS) if stage.attack.is_search else threat
        probed = replace(stage, surrogate=None, faster=None)
        x, y = self.x[:count], self.y[:count]
        seconds = []
        # The first run allocates memory.
        for _ in range(2):
            with (
                no_early_exit(),
                full_precision(x.device.type),
                crafting(self.network, "eval"),
                count_passes(self.network) as passes,
            ):
                outcome = run_attack(
                    probed,
                    self.network,
                    Searches(self.network, [probed]),
                    x,
                    y,
                    self._rng(count),
                    stage.batch_size or count,
                    threat=own,
                    votes=1,
                )
            seconds.append(outcome.seconds)
        work = Work(**vars(passes))
        return replace(work, others=min(seconds) - self.times.seconds(work)) * (1 / count)

    def _exits_early(self, attack: Attack, threat: ThreatModel) -> bool:
        """Return True if the attack spends fewer passes on images that are misclassified from the start."""
        single = with_settings(attack, **dict.fromkeys(attack.repeats, 1))
        spent = []
        x, y = self.x[:_COUNTED], self.y[:_COUNTED]
        for labels in (y, (y + 1) % self.classes):
            with warnings.catch_warnings(), crafting(self.network, "eval"), count_passes(self.network) as passes:
                # Warnings about accuracies do not matter here.
                warnings.simplefilter("ignore")
                single(self.network, x.clone(), labels, threat.scaled(_HARMLESS), self._rng(len(x)))
            spent.append(passes.forwards + passes.gradients)
        return spent[1] < spent[0]

    def _rng(self, count: int) -> IndexedNoise:
        return IndexedNoise(0, torch.arange(count, device=self.x.device))


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


def _shortened(stage: Stage, steps: int, **settings: Any) -> Stage:
    """Return the stage with another number of steps or queries, or unchanged if its attack has neither."""
    return replace(stage, attack=with_settings(stage.attack, **{stage.attack.length: steps}, **settings))
