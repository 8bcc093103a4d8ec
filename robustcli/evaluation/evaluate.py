"""One evaluation: check model and data, gather the evidence, judge it, put everything back."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from robustcli.errors import EvaluationError, RobustCliError
from robustcli.evaluation.evidence import Evidence, StageRecord, gather
from robustcli.evaluation.isolation import generators_restored, model_restored
from robustcli.evaluation.outcomes import Journal
from robustcli.evaluation.postflight import postflight
from robustcli.evaluation.preflight import preflight
from robustcli.evaluators import Evaluator, looks_of
from robustcli.registry.types import exact_text
from robustcli.runtime.precision import full_precision
from robustcli.statistics import clopper_pearson
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

__all__ = ["Result", "evaluate", "preflight"]


@dataclass(frozen=True)
class Result:
    """What one evaluation found, image by image; `to_json` is its entry in results.json.

    Args:
        evaluator: registered name of the evaluator.
        parameters: its settings, as the spec states them.
        norm: of the threat model.
        eps: radius of the threat model, as exact text such as "8/255" or "0.5".
        seed: of the evaluation's noise.
        survivors: one character per image, in the order of the data: "1" still correct, "0" not.
        forwards: examples that the evaluator passed through the model.
        gradients: examples for which it asked for a gradient through the logits.
        seconds: wall-clock time of the evaluator, without the checks around it.
        stages: its attacks in their order: images that entered and that it broke, and what that took.
        suspicions: signs that attacks failed for another reason than robustness.
        warnings: what else a reader of the number must know, each once.
        evidence: what is known of every image.
    """

    evaluator: str
    parameters: dict[str, Any]
    norm: str
    eps: str
    seed: int
    survivors: str
    forwards: int
    gradients: int
    seconds: float
    stages: list[StageRecord] = field(default_factory=list)
    suspicions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    evidence: Evidence | None = field(default=None, compare=False, repr=False)

    @property
    def eps_value(self) -> float:
        """The radius as a float."""
        return float(Fraction(self.eps))

    @property
    def correct(self) -> int:
        """Images that survived."""
        return self.survivors.count("1")

    @property
    def total(self) -> int:
        """Images evaluated, those wrong when clean included."""
        return len(self.survivors)

    @property
    def accuracy(self) -> float:
        """Survivors as a fraction of all images."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Clopper-Pearson interval of the accuracy, over the drawing of the images."""
        return clopper_pearson(self.correct, self.total)

    @property
    def verdict(self) -> str:
        """TRUSTED, or SUSPECT where there are suspicions. What is INVALID has no result: it is an error."""
        return "SUSPECT" if self.suspicions else "TRUSTED"

    @property
    def is_upper_bound(self) -> bool:
        """Whether only attacks of one kind were tried: masked gradients go unnoticed by those that use them, and
        those that use none are weak."""
        uses_gradients = any(not stage.is_black_box for stage in self.stages)
        uses_none = any(stage.is_black_box or stage.has_black_box for stage in self.stages)
        return bool(self.stages) and not (uses_gradients and uses_none)

    @classmethod
    def from_json(cls, value: Any, source: str) -> "Result":
        """What `to_json` wrote, without the evidence; what follows from other fields is not read.

        Args:
            source: the file, for messages.

        Raises:
            RobustCliError: names the key that is missing or of another kind.
        """
        found = _known(cls, value, source)
        if not found["survivors"]:
            raise RobustCliError(f"{source}: survivors: expected one character per image, found none")
        stages = [
            StageRecord(**_known(StageRecord, stage, f"{source}: stages[{number}]"))
            for number, stage in enumerate(found["stages"])
        ]
        return cls(**{**found, "stages": stages})

    def to_json(self) -> dict[str, Any]:
        """Plain data with the keys of results.json.

        All fields but the evidence; further eps_value (float), correct and total (counts of images), accuracy
        (fraction), interval ([low, high], fractions, 95 %), verdict and is_upper_bound.
        """
        plain = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "evidence"}
        return {
            **plain,
            "stages": [asdict(stage) for stage in self.stages],
            "eps_value": self.eps_value,
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "verdict": self.verdict,
            "is_upper_bound": self.is_upper_bound,
        }


def evaluate(
    name: str,
    parameters: dict[str, Any],
    evaluator: Evaluator,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    seed: int,
    *,
    journal: Journal | None = None,
    share: tuple[int, int] | None = None,
    expected_clean: float | None = None,
) -> Result:
    """Run one evaluator between `preflight` and `postflight`, in single precision; the model is left as it was.

    Two evaluations with equal seeds draw equal noise, whatever they are called. Warnings raised meanwhile are
    collected in the result instead of being shown.

    Args:
        name: registered name of the evaluator.
        parameters: its settings, as plain data.
        evaluator: the evaluator.
        model: network in eval mode, pixels in [0, 1] -> logits.
        x, y: images and labels, on the model's device.
        threat: the threat model.
        seed: of the evaluation's noise.
        journal: what earlier processes found, and where findings are kept.
        share: (i, n): only the i-th of n shares of the images, numbered from 0; their findings are what they would
            be among all, and stages of which that does not hold are left out, with all that come after them.
        expected_clean: clean accuracy that the network is known to have on other images of its kind.

    Raises:
        EvaluationError: the number would mean nothing; says why.
    """
    is_random = looks_of(evaluator) > 1
    numbers = torch.arange(len(x), device=x.device)
    if share is not None:
        numbers = numbers[share[0] :: share[1]]
        x, y = x[numbers], y[numbers]
    with warnings.catch_warnings(record=True) as caught:
        # Deprecations stay with the filters of the process: they are about code, not about the number.
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        with settled(model, x.device.type):
            try:
                preflight(model, x, y, threat, allows_randomness=is_random)
                for parameter in model.parameters():
                    parameter.requires_grad_(False)
                rng = IndexedNoise(seed, numbers)
                evidence = gather(evaluator, model, x, y, threat, rng, journal, is_share=share is not None)
            except EvaluationError as error:
                raise EvaluationError(f"INVALID: {error}") from error
            suspicions = (
                []
                if share
                else postflight(model, x, y, threat, evidence, rng, is_random=is_random, expected_clean=expected_clean)
            )
    return Result(
        evaluator=name,
        parameters=parameters,
        norm=threat.norm,
        eps=exact_text(threat.eps),
        seed=seed,
        survivors="".join("1" if is_alive else "0" for is_alive in evidence.survives.tolist()),
        forwards=evidence.forwards,
        gradients=evidence.gradients,
        seconds=evidence.seconds,
        stages=evidence.stages,
        suspicions=suspicions,
        warnings=list(dict.fromkeys([*(str(warning.message) for warning in caught), *evidence.warnings])),
        evidence=evidence,
    )


def _known(kind: type, value: Any, source: str) -> dict[str, Any]:
    """The fields of a dataclass in a mapping, other keys left out; each of the type that the class states.

    What has a default was added later, and older files lack it.
    """
    if not isinstance(value, Mapping):
        raise RobustCliError(f"{source}: expected keys and values, found {str(value)[:40]}")
    hints = get_type_hints(kind)
    found = {}
    for item in fields(kind):
        if item.name == "evidence" or (item.name not in value and item.default is not MISSING):
            continue
        hint = hints[item.name]
        # Of list[str] the list is looked at alone; JSON writes whole floats as it likes.
        expected = get_origin(hint) if get_origin(hint) in (list, dict) else int | float if hint is float else hint
        if item.name not in value or not isinstance(value[item.name], expected):
            text = str(value[item.name])[:40] if item.name in value else "nothing"
            raise RobustCliError(f"{source}: {item.name}: expected {getattr(hint, '__name__', hint)}, found {text}")
        found[item.name] = value[item.name]
    return found


@contextmanager
def settled(model: nn.Module, device_type: str) -> Iterator[None]:
    """The state in which numbers are made: single precision; model and generators are afterwards what they were."""
    with model_restored(model), full_precision(device_type), generators_restored(torch.device(device_type)):
        yield
