"""Gather the evidence of an evaluation: run its attacks one after the other on the remaining images.

An adversarial image counts only after its distance was measured and the network has classified it in a separate
forward pass.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from robustcli.attacks.crafting import crafting
from robustcli.data.images import AnyImages
from robustcli.errors import EvaluationError
from robustcli.evaluation.adaptive_batches import AdaptiveBatches
from robustcli.evaluation.confirm import Prediction, predict, votes_for
from robustcli.evaluation.evidence import SURVIVES, WRONG_WHEN_CLEAN, Evidence, sampled
from robustcli.evaluation.gradient import gives_gradient, no_gradient
from robustcli.evaluation.journal import NO_JOURNAL, Journal
from robustcli.evaluation.noted_warnings import joined, noted_warnings
from robustcli.evaluation.passes import count_passes
from robustcli.evaluation.progress import Report, StageProgress, silent
from robustcli.evaluation.restore import restored_generators
from robustcli.evaluation.run_attack import AttackOutcome, run_attack
from robustcli.evaluation.searches import Searches
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.runtime.precision import full_precision
from robustcli.store.evaluations import StageResult
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

# Seconds between two reports within a batch.
_PULSE = 1.0


def gather(
    evaluator: Evaluator,
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    rng: IndexedNoise,
    journal: Journal = NO_JOURNAL,
    *,
    is_share: bool = False,
    report: Report = silent,
    keeps_examples: bool = True,
) -> Evidence:
    """Run every attack of an evaluator on the images that still survive.

    Args:
        model: network in eval mode; weights and modes are restored.
        x, y: images and labels, on the model's device.
        rng: noise indexed by image number, so that batches and processes do not matter.
        journal: outcomes of earlier processes; new ones are added.
        is_share: whether these are only some of the images of an evaluation. Then stop before the first stage whose
            outcome depends on the other images, because it draws a sample or makes its own batches.
        report: called when an attack begins and after each of its batches.
        keeps_examples: keep the adversarial images, in memory or in the journal.

    Raises:
        EvaluationError: logits are not finite, or an attack left the threat set.
    """
    votes = votes_for(evaluator, model)
    batches = AdaptiveBatches(x.device, model, is_random=votes > 1)
    with full_precision(x.device.type), crafting(model, "eval"), restored_generators(x.device):
        evidence = _clean(model, x, y, rng, evaluator.batch_size, votes, batches, report)
        with noted_warnings() as caught:
            stages = evaluator.stages(AttackContext(threat, (x.shape[1], x.shape[2], x.shape[3]), evidence.classes))
        # At radius 0 the threat set contains only the clean image.
        stages = [stage for stage in stages if (stage.threat or threat).radius]
        evidence.warnings += tuple(caught)
        if len({stage.name for stage in stages}) < len(stages):
            raise EvaluationError(f"two stages have one name: {', '.join(stage.name for stage in stages)}")
        by_gradient = [stage.name for stage in stages if not stage.is_black_box]
        evidence.has_gradient = gives_gradient(model, x) if by_gradient else None
        if evidence.has_gradient is False:
            stages = [stage for stage in stages if stage.is_black_box]
            if not stages:
                raise EvaluationError(no_gradient(by_gradient))
            evidence.without_gradient = tuple(by_gradient)
        searches = Searches(model, stages)
        evidence.attacks = tuple(stage.attack for stage in stages)
        evidence.threats = tuple(stage.threat or threat for stage in stages)
        for number, stage in enumerate(stages, 1):
            if is_share and (stage.sample or stage.subset or stage.nearest or stage.batch_size is None):
                break
            call = partial(run_attack, stage, model, searches, threat=stage.threat or threat, votes=votes)
            follower = _Follower(report, evidence, number, len(stages))
            with follower.pulse(model, *searches.of(stage)):
                _run_stage(stage, call, x, y, rng, evidence, journal, batches, follower, keeps_examples=keeps_examples)
        evidence.warnings = joined((*evidence.warnings, *batches.warnings))
    return evidence


def _run_stage(
    stage: Stage,
    call: Callable[[Tensor, Tensor, IndexedNoise, int, Tensor | None], AttackOutcome],
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
    is_waiting, sample = evidence.survives, sampled(evidence.survives, stage.sample, rng)
    entered = int(is_waiting.sum())
    drawn = None if stage.subset is None else is_waiting & evidence.draw(stage.subset, rng)
    near = None if stage.nearest is None else evidence.nearest(stage.nearest)
    if drawn is not None or near is not None:
        is_waiting = torch.stack([mask for mask in (drawn, near) if mask is not None]).any(0)
    evidence.stages.append(
        StageResult(
            name=stage.name,
            is_black_box=stage.is_black_box,
            has_black_box=stage.has_black_box,
            is_search=stage.attack.is_search,
            threat=None if stage.threat is None else str(stage.threat),
            entered=entered,
            sampled=None if drawn is None else int(drawn.sum()),
            nearest=None if near is None else int(is_waiting.sum()) - (0 if drawn is None else int(drawn.sum())),
            broken=0,
            forwards=0,
            gradients=0,
            seconds=0.0,
        )
    )
    # The journal does not keep the points that a stage hands on.
    kept = () if stage.hands_on else journal.outcomes(stage.name, set(evidence.numbers[is_waiting].tolist()))
    for outcome in kept:
        if keeps_examples and outcome.points is None:
            # Attacked without keeping examples, so these images are attacked again.
            continue
        # Processes with other shards may have attacked some images twice.
        known = outcome.among(set(evidence.numbers[is_waiting].tolist()))
        evidence.add(known, rows)
        is_waiting[[rows[number] for number in known.numbers.tolist()]] = False
    follower.begin(evidence.stages[-1].to_attack - int(is_waiting.sum()))
    for waiting in (is_waiting & sample, is_waiting & ~sample):
        left = waiting.nonzero().flatten().to(x.device)

        def attack(part: slice, size: int, left: Tensor = left) -> AttackOutcome:
            row = left[part]
            noise = rng.rows(row)
            starts = evidence.starts(x[row], noise.index) if stage.starts else None
            found = call(x[row], y[row], noise, size, starts)
            return found if keeps_examples else replace(found, points=None)

        for outcome in batches.map(len(left), stage.batch_size, attack, type(stage.attack).__name__):
            evidence.add(journal.keep(outcome), rows)
            follower.add(len(outcome.numbers))
        if evidence.stages[-1].broken == 0 and not bool(sample.all()):
            evidence.end_after_sample(int(sample.sum()))
            break
    if near is not None:
        evidence.leave_out(near)


def _clean(
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    rng: IndexedNoise,
    batch_size: int,
    votes: int,
    batches: AdaptiveBatches,
    report: Report,
) -> Evidence:
    """Return the evidence before any attack."""
    begun = time.perf_counter()

    def classify(part: slice, _size: int) -> Prediction:
        found = predict(model, x[part], y[part], votes)
        rate = part.stop / max(time.perf_counter() - begun, 1e-9)
        report(StageProgress("clean", entered=len(x), attacked=part.stop, images_per_second=rate))
        return found

    torch.manual_seed(derive(rng.seed, "clean"))
    with count_passes(model) as passes:
        parts = [*batches.map(len(x), batch_size, classify, "clean")]
    predictions = torch.cat([part.predictions for part in parts]).cpu()
    labels = y.cpu()
    return Evidence(
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
