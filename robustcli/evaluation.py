"""One evaluation: check model and data, call the evaluator, count its passes, put everything back."""

import time
import warnings
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.errors import EvaluationError
from robustcli.evaluators import Evaluator, chunks
from robustcli.fields import exact_text
from robustcli.isolation import full_precision, model_restored, passes_counted
from robustcli.noise import IndexedNoise
from robustcli.preflight import preflight
from robustcli.statistics import clopper_pearson
from robustcli.threat import ThreatModel

__all__ = ["Result", "evaluate", "preflight"]

# A tie between two logits may fall either way in a batch of another size; relative to the largest logit.
_ROUNDING = 1e-4
_BATCH = 250


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
        warnings: what a reader of the number must know, each once.
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
    warnings: list[str] = field(default_factory=list)

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

    def to_json(self) -> dict[str, Any]:
        """Plain data with the keys of results.json.

        evaluator, parameters, norm, eps, seed, survivors, forwards, gradients, seconds and warnings as in the
        fields; further eps_value (float), correct and total (counts of images), accuracy (fraction) and
        interval ([low, high], fractions, 95 %).
        """
        return {
            **asdict(self),
            "eps_value": self.eps_value,
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
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
) -> Result:
    """Run one evaluator after `preflight`, in single precision; the model is afterwards what it was.

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

    Raises:
        EvaluationError: the number would mean nothing; says why.
    """
    is_random_allowed = bool(getattr(evaluator, "allows_randomness", False))
    with warnings.catch_warnings(record=True) as caught:
        # Deprecations stay with the filters of the process: they are about code, not about the number.
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        with model_restored(model), full_precision(x.device.type):
            preflight(model, x, y, threat, allows_randomness=is_random_allowed)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            rng = IndexedNoise(seed, torch.arange(len(x), device=x.device))
            with passes_counted(model) as passes:
                begun = time.perf_counter()
                survivors = evaluator(model, x, y, threat, rng)
                survivors = _as_mask(name, survivors, len(x))
                seconds = time.perf_counter() - begun
            if not is_random_allowed:
                _require_right_when_clean(name, survivors, model, x, y)
    return Result(
        evaluator=name,
        parameters=parameters,
        norm=threat.norm,
        eps=exact_text(threat.eps),
        seed=seed,
        survivors="".join("1" if is_alive else "0" for is_alive in survivors.tolist()),
        forwards=passes.forwards,
        gradients=passes.gradients,
        seconds=seconds,
        warnings=list(dict.fromkeys(str(warning.message) for warning in caught)),
    )


def _as_mask(name: str, survivors: Tensor, count: int) -> Tensor:
    if not isinstance(survivors, Tensor) or survivors.dtype != torch.bool or survivors.shape != (count,):
        found = f"{survivors.dtype} {tuple(survivors.shape)}" if isinstance(survivors, Tensor) else repr(survivors)
        raise EvaluationError(f"evaluator {name}: returned {found}; expected torch.bool of shape ({count},)")
    return survivors.cpu()


def _require_right_when_clean(name: str, survivors: Tensor, model: nn.Module, x: Tensor, y: Tensor) -> None:
    alive = survivors.nonzero().flatten()
    wrong = 0
    for part in chunks(len(alive), _BATCH):
        index = alive[part]
        with torch.no_grad():
            logits = model(x[index])
        true = logits.gather(1, y[index][:, None]).squeeze(1)
        # Beyond rounding: the evaluator classified in batches of its own, and a tie may fall either way.
        wrong += int((logits.amax(1) - true > _ROUNDING * logits.abs().amax(1)).sum())
    if wrong:
        raise EvaluationError(
            f"evaluator {name}: {wrong} of {len(alive)} survivors are wrong on the clean image; robust accuracy "
            "counts only images that are right when clean"
        )
