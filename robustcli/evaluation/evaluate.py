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
from robustcli.evaluation.certificates import certified, certified_record, contradictions, is_smoothed
from robustcli.evaluation.confirm import votes_for
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluation.journal import NO_JOURNAL, Journal
from robustcli.evaluation.noted_warnings import noted_warnings
from robustcli.evaluation.postflight import postflight
from robustcli.evaluation.preflight import preflight
from robustcli.evaluation.progress import Report, silent
from robustcli.evaluation.restore import settled
from robustcli.evaluation.two_phase import TwoPhases
from robustcli.evaluators import Certificate, Evaluator
from robustcli.registry.types import exact_text
from robustcli.runtime.ranks import Share
from robustcli.store.evaluations import Evaluation
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


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
        expected_clean: known clean accuracy of the network on similar images.
        report: called when an attack begins and after each of its batches.
        keeps_examples: keep the adversarial images, in memory or in the journal.

    Raises:
        EvaluationError: the number would be meaningless; the message says why.
    """
    network = evaluator.network(model)
    rng = IndexedNoise(seed, torch.arange(len(x), device=x.device))
    certificate: Certificate | None = None
    with noted_warnings() as noted, _checked_and_settled(evaluator, network, x, y, threat):
        with error_means_invalid():
            if evaluator.certifier is not None:
                size = evaluator.batch_size
                certificate = certified(evaluator.certifier, model, x, y, threat, rng, size, journal, report)
            keeps = _keeps_examples(evaluator, keeps_examples)
            evidence = gather(evaluator, network, x, y, threat, rng, journal, report=report, keeps_examples=keeps)
        suspicions = postflight(
            network,
            x,
            y,
            threat,
            evidence,
            rng,
            votes=votes_for(evaluator, network),
            is_vote=votes_of(network) > 1 or is_smoothed(evaluator),
            expected_clean=expected_clean,
        )
        if certificate is not None:
            suspicions += contradictions(certificate, evaluator, network, x, y, evidence, seed)
    phases = TwoPhases.of(evidence)
    all_noted = [*noted, *([] if phases is None else [str(phases)]), *evidence.warnings]
    return Result(
        evaluator=name,
        parameters=parameters,
        norm=threat.norm,
        eps=exact_text(threat.eps),
        seed=seed,
        survivors=evidence.survivors,
        forwards=evidence.forwards,
        gradients=evidence.gradients,
        seconds=evidence.seconds,
        stages=evidence.stages,
        suspicions=suspicions,
        # A warning that causes a suspicion is shown as a suspicion only.
        warnings=[text for text in dict.fromkeys(all_noted) if text not in suspicions],
        sample=evidence.sample,
        estimate=None if phases is None else phases.estimate,
        certified=None if certificate is None else certified_record(certificate, evaluator),
        evidence=evidence,
    )


def evaluate_share(
    evaluator: Evaluator,
    model: nn.Module,
    x: AnyImages,
    y: Tensor,
    threat: ThreatModel,
    seed: int,
    share: Share,
    journal: Journal,
    *,
    keeps_examples: bool = True,
) -> None:
    """Attack one share of the images of an evaluation; the findings, the same as among all images, go to the journal.

    Stages for which they would not be the same, and all later ones, are left to `evaluate`. The arguments are those of
    `evaluate`.

    Raises:
        EvaluationError: the number would be meaningless; the message says why.
    """
    network = evaluator.network(model)
    numbers = torch.arange(len(x), device=x.device)[share[0] :: share[1]]
    x, y = Images.of(x).subset(numbers), y[numbers]
    keeps = _keeps_examples(evaluator, keeps_examples)
    with noted_warnings(), _checked_and_settled(evaluator, network, x, y, threat), error_means_invalid():
        rng = IndexedNoise(seed, numbers)
        gather(evaluator, network, x, y, threat, rng, journal, is_share=True, keeps_examples=keeps)


@contextmanager
def error_means_invalid() -> Iterator[None]:
    """Mark the message of an EvaluationError."""
    try:
        yield
    except EvaluationError as error:
        raise EvaluationError(f"INVALID: {error}") from error


@contextmanager
def _checked_and_settled(
    evaluator: Evaluator, network: nn.Module, x: AnyImages, y: Tensor, threat: ThreatModel
) -> Iterator[None]:
    """Run the checks before an evaluation; inside, the conditions are those of an evaluation."""
    with settled(network, x.device.type):
        with error_means_invalid():
            allows_randomness = votes_for(evaluator, network) > 1
            preflight(network, x, y, threat, allows_randomness=allows_randomness, batch_size=evaluator.batch_size)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        yield


def _keeps_examples(evaluator: Evaluator, is_asked: bool) -> bool:
    """Return whether examples are kept: if asked, and for votes at the examples of certified images."""
    return is_asked or is_smoothed(evaluator)
