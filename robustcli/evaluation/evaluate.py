"""Run one evaluation: check model and data, run the attacks, check the result, and restore everything."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from robustcli.architectures import votes_of
from robustcli.data.images import AnyImages, Images
from robustcli.errors import EvaluationError
from robustcli.evaluation.confirm import votes_for
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluation.journal import NO_JOURNAL, Journal
from robustcli.evaluation.noted_warnings import noted_warnings
from robustcli.evaluation.postflight import postflight
from robustcli.evaluation.preflight import preflight
from robustcli.evaluation.progress import Report, StageProgress, silent
from robustcli.evaluation.restore import settled
from robustcli.evaluation.two_phase import TwoPhases
from robustcli.evaluators import Certificate, Evaluator, chunks
from robustcli.registry.types import exact_text
from robustcli.statistics import clopper_pearson, most_by_chance
from robustcli.store.evaluations import CertifiedRecord, Evaluation
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

# Votes, as a multiple of the usual number, that decide whether a smoothed network loses a certified image, and the
# confidence with which they do.
_SURER, _SURELY = 5, 0.998


class Result(Evaluation):
    """An evaluation with the evidence for every image. `to_json` is its entry in results.json."""

    evidence: InstanceOf[Evidence] | None = Field(default=None, exclude=True, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]


def evaluate(
    name: str,
    parameters: dict[str, Any],
    evaluator: Evaluator,
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    seed: int,
    *,
    journal: Journal = NO_JOURNAL,
    share: tuple[int, int] | None = None,
    expected_clean: float | None = None,
    report: Report = silent,
    keeps_examples: bool = True,
) -> Result:
    """Run one evaluator between `preflight` and `postflight`, in single precision; the model is left unchanged.

    Evaluations with equal seeds draw equal noise. Warnings during the evaluation are collected in the result instead
    of being shown.

    Args:
        name: registered name of the evaluator.
        parameters: its settings, as plain data.
        evaluator: the evaluator.
        model: network in eval mode, pixels in [0, 1] -> logits.
        x, y: images and labels, on the model's device.
        threat: the threat model.
        seed: seed of the noise.
        journal: findings of earlier processes, and the place to keep new ones.
        share: (i, n): evaluate only the i-th of n shares of the images, from 0. Findings are the same as among all
            images; stages for which this does not hold, and all later ones, are skipped.
        expected_clean: known clean accuracy of the network on similar images.
        report: called when an attack begins and after each of its batches.
        keeps_examples: keep the adversarial images, in memory or in the journal.

    Raises:
        EvaluationError: the number would be meaningless; the message says why.
    """
    evaluated, model = model, evaluator.network(model)
    votes = votes_for(evaluator, model)
    is_smoothed = evaluator.certifier is not None and evaluator.certifier.smooths
    numbers = torch.arange(len(x), device=x.device)
    if share is not None:
        numbers = numbers[share[0] :: share[1]]
        x, y = Images.of(x).subset(numbers), y[numbers]
    rng = IndexedNoise(seed, numbers)
    with noted_warnings() as caught, settled(model, x.device.type):
        with error_means_invalid():
            preflight(model, x, y, threat, allows_randomness=votes > 1, batch_size=evaluator.batch_size)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            certificate = None if share else _certificate(evaluator, evaluated, x, y, threat, rng, journal, report)
            evidence = gather(
                evaluator,
                model,
                x,
                y,
                threat,
                rng,
                journal,
                is_share=share is not None,
                report=report,
                # The vote at the example of a certified image is repeated.
                keeps_examples=keeps_examples or is_smoothed,
            )
        suspicions: list[str] = []
        if share is None:
            is_vote = votes_of(model) > 1 or is_smoothed
            suspicions = postflight(
                model, x, y, threat, evidence, rng, votes=votes, is_vote=is_vote, expected_clean=expected_clean
            )
        if certificate is not None:
            odd = (certificate.is_certified & ~evidence.survives).nonzero().flatten()
            if is_smoothed:
                odd = odd[_surely_lost(model, x, y, evidence, odd, _SURER * votes, seed)]
            suspicions += _contradictions(certificate, len(odd))
    phases = None if share else TwoPhases.of(evidence)
    noted = [*caught, *([] if phases is None else [str(phases)]), *evidence.warnings]
    return Result(
        evaluator=name,
        parameters=parameters,
        norm=threat.norm,
        eps=exact_text(threat.eps),
        seed=seed,
        survivors=_mask(evidence.survives),
        forwards=evidence.forwards,
        gradients=evidence.gradients,
        seconds=evidence.seconds,
        stages=evidence.stages,
        suspicions=suspicions,
        # A warning that causes a suspicion is shown as a suspicion only.
        warnings=[text for text in dict.fromkeys(noted) if text not in suspicions],
        sample=None if evidence.drawn is None else "".join(map(str, evidence.drawn.int().tolist())),
        estimate=None if phases is None else phases.estimate,
        certified=None if certificate is None else _record(certificate, evaluator),
        evidence=evidence,
    )


@contextmanager
def error_means_invalid() -> Iterator[None]:
    """Mark the message of an EvaluationError."""
    try:
        yield
    except EvaluationError as error:
        raise EvaluationError(f"INVALID: {error}") from error


def _certificate(
    evaluator: Evaluator,
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    rng: IndexedNoise,
    journal: Journal,
    report: Report,
) -> Certificate | None:
    """The certificates of all images, in parts that the journal keeps, or None without a certifier."""
    if evaluator.certifier is None:
        return None
    found: list[Certificate] = []
    for part in chunks(len(x), evaluator.batch_size):
        report(StageProgress("certificates", 0, 0, len(x), part.start, 0, 0))
        rows = torch.arange(part.start, part.stop, device=x.device)
        own = rng.rows(rows)
        one = journal.certificate(own.index)
        if one is None:
            one = evaluator.certifier.certify(model, x[rows], y[rows], threat, own)
            journal.keep_certificate(own.index, one)
        found.append(one)
    counts = [one.abstained for one in found if one.abstained is not None]
    return Certificate(
        torch.cat([one.is_certified.cpu() for one in found]), sum(counts) if counts else None, found[0].chance
    )


def _surely_lost(
    model: nn.Module, x: AnyImages, y: Tensor, evidence: Evidence, rows: Tensor, votes: int, seed: int
) -> Tensor:
    """Mask of broken images, given by their rows, whose label surely has less than half of the votes.

    The certificate is about the class with most of all votes. At the worst point of the threat set this class may have
    just over a half, and then a vote of few copies often goes wrong.
    """
    torch.manual_seed(derive(seed, "certificates"))
    lost = []
    for row in rows.to(x.device)[:, None]:
        # An image that was lost when clean has no example.
        example = evidence.points.get(int(evidence.numbers[row.cpu()]))
        point = x[row] if example is None else example.to(x.device)[None]
        with torch.no_grad():
            right = sum(int(model(point).argmax(1) == y[row]) for _ in range(votes))
        lost.append(clopper_pearson(right, votes, _SURELY)[1] < 0.5)
    return torch.tensor(lost, dtype=torch.bool)


def _contradictions(certificate: Certificate, broken: int) -> Iterator[str]:
    """Whether an attack broke more certified images than chance explains."""
    if broken > most_by_chance(len(certificate.is_certified), certificate.chance):
        yield (
            f"{broken} images are certified, and an attack broke them: certificate or attack is wrong, and neither "
            "bound can be trusted; please report it"
        )


def _record(certificate: Certificate, evaluator: Evaluator) -> CertifiedRecord:
    assert evaluator.certifier is not None
    return CertifiedRecord(
        images=_mask(certificate.is_certified),
        abstained=certificate.abstained,
        is_smoothed=evaluator.certifier.smooths,
        chance=certificate.chance,
    )


def _mask(images: Tensor) -> str:
    """Encode a mask as text."""
    return "".join("1" if is_set else "0" for is_set in images.tolist())
