"""The record of an evaluation: which attack broke which image, how far from it, and what that took.

Attacks propose, this module judges: where an adversarial image lies is measured, and it is classified by a forward
of its own before it counts.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.crafting import crafting
from robustcli.errors import EvaluationError
from robustcli.evaluation.attack_call import struck
from robustcli.evaluation.batching import Portions
from robustcli.evaluation.confirm import judged
from robustcli.evaluation.gradient import gives_gradient, no_gradient
from robustcli.evaluation.isolation import generators_restored, passes_counted
from robustcli.evaluation.outcomes import Forgetful, Journal, Strike
from robustcli.evaluators import Case, Evaluator, Stage, looks_of
from robustcli.runtime.precision import full_precision
from robustcli.statistics import unseen_at_most
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

# In `broken_by`, beside the numbers of stages.
SURVIVES, WRONG_WHEN_CLEAN = -1, -2


@dataclass
class StageRecord:
    """What one stage did: images that entered and that it broke, and what that took.

    Args:
        name: of the stage.
        is_black_box: whether it used no gradients.
        has_black_box: whether a part of it used none.
        threat: as text such as "l2 0.5", where the stage has one of its own.
        sampled: how many of those that entered were attacked, where none of them broke; None is all.
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
    threat: str | None = None


@dataclass
class Evidence:
    """What is known of every image, on the CPU.

    Args:
        numbers: (n,) in the data set.
        labels, clean: (n,) classes: the true one, and that of the clean image.
        broken_by: (n,) number of the stage that broke the image, or SURVIVES, or WRONG_WHEN_CLEAN.
        predictions: (n,) class of the adversarial image; of those not broken, the clean one's.
        margins: (n,) the largest seen: wrong logit minus true one.
        sizes: (n,) of the perturbations that broke images; 0 elsewhere.
        points: adversarial images (c, h, w) by image number.
        stages: in their order.
        clean_forwards, clean_seconds: of the clean images.
        classes: logits of the model.
        has_gradient: whether the model gives a gradient.
        without_gradient: attacks that were left out, because it gives none.
        warnings: each once.
        attacks, threats: of the stages.
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
    has_gradient: bool = True
    without_gradient: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    attacks: tuple[Attack, ...] = ()
    threats: tuple[ThreatModel, ...] = ()

    @property
    def survives(self) -> Tensor:
        """Who is right when clean and broken by nobody: bool (n,)."""
        return self.broken_by == SURVIVES

    @property
    def forwards(self) -> int:
        """Of the clean images and of all stages."""
        return self.clean_forwards + sum(stage.forwards for stage in self.stages)

    @property
    def gradients(self) -> int:
        """Of all stages."""
        return sum(stage.gradients for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of the clean images and of all stages."""
        return self.clean_seconds + sum(stage.seconds for stage in self.stages)

    def screened(self, sampled: int) -> None:
        """The last stage broke nobody among so many, and leaves it at that."""
        stage = self.stages[-1]
        stage.sampled = sampled
        missed = unseen_at_most(sampled, stage.entered)
        self.warnings += (
            f"{stage.name} attacked {sampled} of {stage.entered} survivors and broke none; with 95 % confidence it "
            f"would break at most {missed} of all, {100 * missed / len(self.labels):.2f} points",
        )

    def take(self, strike: Strike, rows: Mapping[int, int]) -> None:
        """Add a strike of the last stage; `rows` tells where image numbers are."""
        stage = self.stages[-1]
        row = torch.tensor([rows[number] for number in strike.numbers.tolist()], dtype=torch.int64)
        broken = row[strike.is_broken]
        self.broken_by[broken] = len(self.stages) - 1
        self.predictions[broken] = strike.predictions[strike.is_broken]
        self.sizes[broken] = strike.sizes[strike.is_broken]
        self.margins[row] = torch.maximum(self.margins[row], strike.margins)
        self.points.update(zip(strike.numbers[strike.is_broken].tolist(), strike.points, strict=True))
        stage.broken += len(broken)
        stage.forwards += strike.forwards
        stage.gradients += strike.gradients
        stage.seconds += strike.seconds
        self.warnings = tuple(dict.fromkeys((*self.warnings, *strike.warnings)))


def gather(
    evaluator: Evaluator,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    rng: IndexedNoise,
    journal: Journal | None = None,
    *,
    is_share: bool = False,
) -> Evidence:
    """Let every attack of an evaluator at the images that are left.

    Args:
        model: in eval mode; its weights and modes are as found afterwards.
        x, y: images and labels, on the model's device.
        rng: its index numbers the images; noise depends on those numbers, so how images are cut into batches or
            over processes changes nothing.
        journal: what earlier processes found, and where findings are kept.
        is_share: whether these images are some of an evaluation's; then it ends before the first stage whose findings
            on them depend on the others: one that draws a sample, or makes batches itself.

    Raises:
        EvaluationError: logits that are not finite, or an attack that left the threat set.
    """
    journal = journal or Forgetful()
    looks = looks_of(evaluator)
    portions = Portions(x.device, model, is_random=looks > 1)
    with full_precision(x.device.type), crafting(model, "eval"), generators_restored(x.device):
        evidence, classes = _clean(model, x, y, rng, evaluator.batch_size, looks, portions)
        if not len(x):
            return evidence
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            stages = evaluator.stages(Case(threat, (x.shape[1], x.shape[2], x.shape[3]), classes))
        # At radius 0 the clean image is all there is.
        stages = [stage for stage in stages if (stage.threat or threat).radius]
        evidence.warnings += tuple(str(warning.message) for warning in caught)
        if len({stage.name for stage in stages}) < len(stages):
            raise EvaluationError(f"two stages have one name: {', '.join(stage.name for stage in stages)}")
        by_gradient = [stage.name for stage in stages if not stage.is_black_box]
        evidence.has_gradient = not stages or gives_gradient(model, x)
        if by_gradient and not evidence.has_gradient:
            stages = [stage for stage in stages if stage.is_black_box]
            if not stages:
                raise EvaluationError(no_gradient(by_gradient))
            evidence.without_gradient = tuple(by_gradient)
        # A copy for all stages that search with the same one.
        copies = {stage.searcher: stage.searcher(model) for stage in stages if stage.searcher is not None}
        evidence.attacks = tuple(stage.attack for stage in stages)
        evidence.threats = tuple(stage.threat or threat for stage in stages)
        for stage in stages:
            if is_share and (stage.sample is not None or stage.batch_size is None):
                break
            search = model if stage.searcher is None else copies[stage.searcher]
            call = partial(struck, stage, model, search, threat=stage.threat or threat, looks=looks)
            _carry_out(stage, call, x, y, rng, evidence, journal, portions)
        evidence.warnings += portions.warnings
    return evidence


def _carry_out(
    stage: Stage,
    call: Callable[[Tensor, Tensor, IndexedNoise, int], Strike],
    x: Tensor,
    y: Tensor,
    rng: IndexedNoise,
    evidence: Evidence,
    journal: Journal,
    portions: Portions,
) -> None:
    """One stage on everybody who is left and whom the journal does not know yet.

    Args:
        call: the stage's attack on some images, with at most so many points in one pass, judged.
    """
    rows = {number: row for row, number in enumerate(evidence.numbers.tolist())}
    is_waiting, sample = evidence.survives, _sample(evidence.survives, stage.sample, rng)
    entered = int(is_waiting.sum())
    record = StageRecord(stage.name, stage.is_black_box, entered, has_black_box=stage.has_black_box)
    record.threat = None if stage.threat is None else str(stage.threat)
    evidence.stages.append(record)
    for strike in journal.strikes(stage.name):
        # Processes that cut the images otherwise may have struck some twice.
        strike = strike.among(set(evidence.numbers[is_waiting].tolist()))
        evidence.take(strike, rows)
        is_waiting[[rows[number] for number in strike.numbers.tolist()]] = False
    for waiting in (is_waiting & sample, is_waiting & ~sample):
        left = waiting.nonzero().flatten().to(x.device)

        def strike_at(part: slice, size: int, left: Tensor = left) -> Strike:
            row = left[part]
            return call(x[row], y[row], rng.rows(row), size)

        for strike in portions.of(len(left), stage.batch_size, strike_at):
            journal.keep(strike)
            evidence.take(strike, rows)
        if record.broken == 0 and not bool(sample.all()):
            evidence.screened(int(sample.sum()))
            break


def _sample(survives: Tensor, size: int | None, rng: IndexedNoise) -> Tensor:
    """Who is attacked first: bool (n,). A random choice that depends on who survives alone; everybody if few do."""
    if size is None or int(survives.sum()) <= size:
        return torch.ones_like(survives)
    luck = rng.split("sample").uniform(torch.empty((len(survives), 1), device=rng.index.device))[:, 0].cpu()
    chosen = torch.where(survives, luck, torch.inf).argsort()[:size]
    return torch.zeros_like(survives).index_fill(0, chosen, True)


def _clean(
    model: nn.Module, x: Tensor, y: Tensor, rng: IndexedNoise, batch_size: int, looks: int, portions: Portions
) -> tuple[Evidence, int]:
    """The evidence before any attack, and how many classes there are."""
    begun = time.perf_counter()
    torch.manual_seed(derive(rng.seed, "clean"))
    with passes_counted(model) as passes:
        parts = [*portions.of(len(x), batch_size, lambda part, _: judged(model, x[part], y[part], looks))]
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
