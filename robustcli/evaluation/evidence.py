"""The evidence of an evaluation: which attack broke which image, at which distance, and at what cost.

An adversarial image counts only after its distance was measured and the network has classified it in a separate
forward pass.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.crafting import crafting
from robustcli.data.images import AnyImages
from robustcli.errors import EvaluationError
from robustcli.evaluation.adaptive_batches import AdaptiveBatches
from robustcli.evaluation.confirm import Prediction, predict
from robustcli.evaluation.gradient import gives_gradient, no_gradient
from robustcli.evaluation.image_warnings import joined
from robustcli.evaluation.journal import Journal, NullJournal
from robustcli.evaluation.passes import count_passes
from robustcli.evaluation.progress import Report, StageProgress, silent
from robustcli.evaluation.restore import restored_generators
from robustcli.evaluation.run_attack import AttackOutcome, run_attack
from robustcli.evaluators import AttackContext, Evaluator, Stage, Subset
from robustcli.runtime.precision import full_precision
from robustcli.statistics import unseen_at_most
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

# Seconds between two reports within a batch.
_PULSE = 1.0
# Values of `broken_by` besides the numbers of stages.
SURVIVES, WRONG_WHEN_CLEAN = -1, -2
# Values of `chosen`.
OUT_OF_REACH, NOT_CHOSEN, DRAWN, NEAREST = -1, 0, 1, 2


@dataclass
class StageRecord:
    """One stage of an evaluation: images that entered and that it broke, and its cost.

    Args:
        name: of the stage.
        is_black_box: whether it uses no gradients of the network.
        has_black_box: whether a part of it uses none.
        threat: as text such as "l2 0.5", if the stage has its own threat model.
        sampled: number of images attacked, if it was only a sample; None is all.
        is_search: whether it looked for the worst point.
    """

    name: str
    is_black_box: bool
    entered: int = 0
    broken: int = 0
    forwards: int = 0
    gradients: int = 0
    seconds: float = 0.0
    sampled: int | None = None
    has_black_box: bool = False
    is_search: bool = True
    threat: str | None = None

    @property
    def to_attack(self) -> int:
        """Number of images to attack, as far as it is known."""
        return self.entered if self.sampled is None else self.sampled


@dataclass
class Evidence:
    """The findings for every image, on the CPU.

    Args:
        numbers: (n,) of the images in the data set.
        labels, clean: (n,) true classes, and predicted classes of the clean images.
        broken_by: (n,) number of the stage that broke the image, or SURVIVES, or WRONG_WHEN_CLEAN.
        predictions: (n,) class of the adversarial image; of the clean image where none was found.
        margins: (n,) largest margin seen: wrong logit minus true one.
        sizes: (n,) of the perturbations that broke the images; 0 elsewhere.
        points: adversarial images (c, h, w) by image number, mapped from the journal if there is one; empty if they are
            not kept.
        stages: in order.
        clean_forwards, clean_seconds: cost of the clean images.
        classes: number of logits of the model.
        has_gradient: whether the model gives a gradient; None if no attack needed one.
        without_gradient: attacks that were left out, because it gives none.
        warnings: each once.
        attacks, threats: one for each stage.
        chosen: (n,) for stages that attack only some images: OUT_OF_REACH if it did not survive until then, NOT_CHOSEN,
            DRAWN at random, or chosen as one of the NEAREST to a wrong class; None without such stages.
    """

    numbers: Tensor
    labels: Tensor
    clean: Tensor
    broken_by: Tensor
    predictions: Tensor
    margins: Tensor
    sizes: Tensor
    points: dict[int, Tensor]
    stages: list[StageRecord]
    clean_forwards: int
    clean_seconds: float
    classes: int = 0
    has_gradient: bool | None = None
    without_gradient: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    attacks: tuple[Attack, ...] = ()
    threats: tuple[ThreatModel, ...] = ()
    chosen: Tensor | None = None

    @property
    def survives(self) -> Tensor:
        """Mask (n,) of the images that are classified correctly and survive every attack."""
        return self.broken_by == SURVIVES

    @property
    def forwards(self) -> int:
        """Forward passes for the clean images and all stages."""
        return self.clean_forwards + sum(stage.forwards for stage in self.stages)

    @property
    def gradients(self) -> int:
        """Gradients of all stages."""
        return sum(stage.gradients for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Time for the clean images and all stages."""
        return self.clean_seconds + sum(stage.seconds for stage in self.stages)

    def end_after_sample(self, sampled: int) -> None:
        """Record that the last stage attacked a sample, broke no image of it and stops there."""
        stage = self.stages[-1]
        stage.sampled = sampled
        missed = unseen_at_most(sampled, stage.entered)
        self.warnings += (
            f"{stage.name} attacked {sampled} of {stage.entered} survivors and broke none; with 95 % confidence it "
            f"would break at most {missed} of all, {100 * missed / len(self.labels):.2f} points",
        )

    def choose(self, subset: Subset, rng: IndexedNoise) -> Tensor:
        """Mask (n,) of the images chosen among those that survive now, or earlier if they were chosen already."""
        if self.chosen is None:
            survives = self.survives
            nearest, drawn = subset.sizes(int(survives.sum()))
            self.chosen = torch.where(survives, NOT_CHOSEN, OUT_OF_REACH)
            margins = torch.where(survives, self.margins, -torch.inf)
            self.chosen[margins.argsort(descending=True, stable=True)[:nearest]] = NEAREST
            others = self.chosen == NOT_CHOSEN
            self.chosen[_sample(others, drawn, rng) & others] = DRAWN
        return self.chosen > NOT_CHOSEN

    def add(self, outcome: AttackOutcome, rows: Mapping[int, int]) -> None:
        """Add an outcome of the last stage; `rows` maps image numbers to rows."""
        stage = self.stages[-1]
        row = torch.tensor([rows[number] for number in outcome.numbers.tolist()], dtype=torch.int64)
        broken = row[outcome.is_broken]
        self.broken_by[broken] = len(self.stages) - 1
        self.predictions[broken] = outcome.predictions[outcome.is_broken]
        self.sizes[broken] = outcome.sizes[outcome.is_broken]
        self.margins[row] = torch.maximum(self.margins[row], outcome.margins)
        if outcome.points is not None:
            self.points.update(zip(outcome.numbers[outcome.is_broken].tolist(), outcome.points, strict=True))
        stage.broken += len(broken)
        stage.forwards += outcome.forwards
        stage.gradients += outcome.gradients
        stage.seconds += outcome.seconds
        self.warnings = tuple(dict.fromkeys((*self.warnings, *outcome.warnings)))


def gather(
    evaluator: Evaluator,
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    rng: IndexedNoise,
    journal: Journal | None = None,
    *,
    is_share: bool = False,
    report: Report = silent,
    keeps_examples: bool = True,
) -> Evidence:
    """Run every attack of an evaluator on the images that still survive.

    Args:
        model: in eval mode; weights and modes are restored.
        x, y: images and labels, on the model's device.
        rng: its index holds the image numbers. Noise depends on these, so batches and processes change nothing.
        journal: outcomes of earlier processes; new ones are added.
        is_share: whether these are only some of the images of an evaluation. It then ends before the first stage whose
            outcome depends on the other images: one that draws a sample or makes its own batches.
        report: called when an attack begins and after each of its batches.
        keeps_examples: keep the adversarial images, in memory or in the journal.

    Raises:
        EvaluationError: logits are not finite, or an attack left the threat set.
    """
    journal = journal or NullJournal()
    votes = evaluator.votes
    batches = AdaptiveBatches(x.device, model, is_random=votes > 1)
    with full_precision(x.device.type), crafting(model, "eval"), restored_generators(x.device):
        evidence, classes = _clean(model, x, y, rng, evaluator.batch_size, votes, batches, report)
        if not len(x):
            return evidence
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            stages = evaluator.stages(AttackContext(threat, (x.shape[1], x.shape[2], x.shape[3]), classes))
        # At radius 0 the threat set holds only the clean image.
        stages = [stage for stage in stages if (stage.threat or threat).radius]
        evidence.warnings += tuple(str(warning.message) for warning in caught)
        if len({stage.name for stage in stages}) < len(stages):
            raise EvaluationError(f"two stages have one name: {', '.join(stage.name for stage in stages)}")
        by_gradient = [stage.name for stage in stages if not stage.is_black_box]
        evidence.has_gradient = gives_gradient(model, x) if by_gradient else None
        if evidence.has_gradient is False:
            stages = [stage for stage in stages if stage.is_black_box]
            if not stages:
                raise EvaluationError(no_gradient(by_gradient))
            evidence.without_gradient = tuple(by_gradient)
        # One surrogate for all stages that ask for the same one.
        surrogates = {stage.surrogate: stage.surrogate(model) for stage in stages if stage.surrogate is not None}
        evidence.attacks = tuple(stage.attack for stage in stages)
        evidence.threats = tuple(stage.threat or threat for stage in stages)
        for number, stage in enumerate(stages, 1):
            if is_share and (stage.sample or stage.subset or stage.batch_size is None):
                break
            search = model if stage.surrogate is None else surrogates[stage.surrogate]
            call = partial(run_attack, stage, model, search, threat=stage.threat or threat, votes=votes)
            follower = _Follower(report, evidence, number, len(stages))
            with follower.pulse(model, search):
                _run_stage(stage, call, x, y, rng, evidence, journal, batches, follower, keeps_examples=keeps_examples)
        evidence.warnings = joined((*evidence.warnings, *batches.warnings))
    return evidence


def _run_stage(
    stage: Stage,
    call: Callable[[Tensor, Tensor, IndexedNoise, int], AttackOutcome],
    x: AnyImages,
    y: Tensor,
    rng: IndexedNoise,
    evidence: Evidence,
    journal: Journal,
    batches: AdaptiveBatches,
    follower: "_Follower",
    *,
    keeps_examples: bool,
) -> None:
    """Run one stage on every image that survives so far and is not in the journal yet.

    Args:
        call: runs the attack on some images, with a largest number of points in one pass.
        follower: reports the progress.
    """
    rows = {number: row for row, number in enumerate(evidence.numbers.tolist())}
    is_waiting, sample = evidence.survives, _sample(evidence.survives, stage.sample, rng)
    entered = int(is_waiting.sum())
    if stage.subset is not None:
        is_waiting &= evidence.choose(stage.subset, rng)
    record = StageRecord(stage.name, stage.is_black_box, entered, has_black_box=stage.has_black_box)
    record.is_search = stage.attack.is_search
    record.threat = None if stage.threat is None else str(stage.threat)
    if stage.subset is not None:
        record.sampled = int(is_waiting.sum())
    evidence.stages.append(record)
    for outcome in journal.outcomes(stage.name, set(evidence.numbers[is_waiting].tolist())):
        if keeps_examples and outcome.points is None:
            # Attacked without keeping examples, so these images are attacked again.
            continue
        # Processes with other shards may have attacked some images twice.
        known = outcome.among(set(evidence.numbers[is_waiting].tolist()))
        evidence.add(known, rows)
        is_waiting[[rows[number] for number in known.numbers.tolist()]] = False
    follower.begin(record.to_attack - int(is_waiting.sum()))
    for waiting in (is_waiting & sample, is_waiting & ~sample):
        left = waiting.nonzero().flatten().to(x.device)

        def attack(part: slice, size: int, left: Tensor = left) -> AttackOutcome:
            row = left[part]
            found = call(x[row], y[row], rng.rows(row), size)
            return found if keeps_examples else replace(found, points=None)

        for outcome in batches.map(len(left), stage.batch_size, attack, type(stage.attack).__name__):
            evidence.add(journal.keep(outcome), rows)
            follower.add(len(outcome.numbers))
        if record.broken == 0 and not bool(sample.all()):
            evidence.end_after_sample(int(sample.sum()))
            break


class _Follower:
    """Reports the progress of the last stage: when it begins, after each batch, and within batches that take long.

    Args:
        number, stages: position of the stage among all, from 1.
    """

    def __init__(self, report: Report, evidence: Evidence, number: int, stages: int) -> None:
        self._report, self._evidence, self._place = report, evidence, (number, stages)
        self._before = self._attacked = self._forwards = 0
        self._begun = self._last = time.perf_counter()

    def begin(self, attacked: int) -> None:
        """Report the start, with the number of images that earlier processes attacked."""
        self._before, self._begun = attacked, time.perf_counter()
        self._tell()

    def add(self, images: int) -> None:
        """Report that one more batch is done."""
        self._attacked += images
        self._forwards = 0
        self._tell()

    @contextmanager
    def pulse(self, *models: nn.Module) -> Iterator[None]:
        """Also report within a batch, now and then, while images pass through the models."""

        def beat(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            self._forwards += len(inputs[0])
            if time.perf_counter() - self._last >= _PULSE and self._evidence.stages:
                self._tell()

        hooks = [] if self._report is silent else [one.register_forward_hook(beat) for one in dict.fromkeys(models)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _tell(self) -> None:
        stage, now = self._evidence.stages[-1], time.perf_counter()
        number, stages = self._place
        self._last = now
        self._report(
            StageProgress(
                stage=stage.name,
                number=number,
                stages=stages,
                entered=stage.to_attack,
                attacked=self._before + self._attacked,
                broken=stage.broken,
                survivors=int(self._evidence.survives.sum()),
                images_per_second=self._attacked / (now - self._begun) if self._attacked else None,
                forwards=self._forwards,
            )
        )


def _sample(survives: Tensor, size: int | None, rng: IndexedNoise) -> Tensor:
    """Mask (n,) of the images to attack first: a random choice among the survivors, or all if there are few."""
    if size is None or int(survives.sum()) <= size:
        return torch.ones_like(survives)
    luck = rng.split("sample").uniform(torch.empty((len(survives), 1), device=rng.index.device))[:, 0].cpu()
    chosen = torch.where(survives, luck, torch.inf).argsort()[:size]
    return torch.zeros_like(survives).index_fill(0, chosen, True)


def _clean(
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    rng: IndexedNoise,
    batch_size: int,
    votes: int,
    batches: AdaptiveBatches,
    report: Report,
) -> tuple[Evidence, int]:
    """Return the evidence before any attack, and the number of classes."""
    begun = time.perf_counter()

    def classify(part: slice, _size: int) -> Prediction:
        found = predict(model, x[part], y[part], votes)
        rate = part.stop / max(time.perf_counter() - begun, 1e-9)
        report(StageProgress("clean", 0, 0, len(x), part.stop, 0, 0, rate))
        return found

    torch.manual_seed(derive(rng.seed, "clean"))
    with count_passes(model) as passes:
        parts = [*batches.map(len(x), batch_size, classify, "clean")]
    predictions = torch.cat([part.predictions for part in parts]).cpu()
    labels = y.cpu()
    evidence = Evidence(
        numbers=rng.index.cpu(),
        labels=labels,
        clean=predictions,
        broken_by=torch.where(predictions == labels, SURVIVES, WRONG_WHEN_CLEAN),
        predictions=predictions.clone(),
        margins=torch.cat([part.margins for part in parts]).cpu(),
        sizes=torch.zeros(len(x), dtype=x.dtype),
        points={},
        stages=[],
        clean_forwards=passes.forwards,
        clean_seconds=time.perf_counter() - begun,
        classes=parts[0].classes,
    )
    return evidence, parts[0].classes
