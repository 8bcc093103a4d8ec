"""Confirm the result of an attack: the class of every image, and that it lies in the threat set."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.architectures import votes_of
from robustcli.attacks.losses import margin
from robustcli.errors import EvaluationError
from robustcli.evaluators import Evaluator
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class Prediction:
    """Classes (n,) of images, margins (n,) of the largest wrong logit over the true one, and the number of classes."""

    predictions: Tensor
    margins: Tensor
    classes: int


def votes_for(evaluator: Evaluator, model: nn.Module) -> int:
    """Forward passes that decide the class of an image: those of the evaluator, or of the network if these are more."""
    return max(evaluator.votes, votes_of(model))


def predict(model: nn.Module, x: Tensor, y: Tensor, votes: int) -> Prediction:
    """Classes and margins of images. With several votes: the most frequent class and the mean margin.

    Args:
        votes: forward passes that vote.

    Raises:
        EvaluationError: some logits are not finite; an argmax over NaN means nothing.
    """
    counts, margins = None, torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(votes):
        with torch.no_grad():
            logits: Tensor = model(x)
        is_finite = torch.isfinite(logits).all(1)
        if not bool(is_finite.all()):
            raise EvaluationError(
                f"the model gives logits that are not finite on {int((~is_finite).sum())} of {len(x)} images, so "
                "accuracy is meaningless"
            )
        vote = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        counts = vote if counts is None else counts + vote
        margins += margin(logits, y) / votes
    assert counts is not None
    return Prediction(counts.argmax(1), margins, counts.shape[1])


def require_inside(attack: str, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    """Raise for adversarial images that are not finite or lie outside the threat set around x.

    Raises:
        EvaluationError: states how many, and by how much. This is an error of the attack, not of the model.
    """
    if x_adv.shape != x.shape:
        raise EvaluationError(
            f"attack {attack}: returned images of shape {tuple(x_adv.shape)} for images of shape {tuple(x.shape)}"
        )
    is_finite = torch.isfinite(x_adv).flatten(1).all(1)
    if not bool(is_finite.all()):
        raise EvaluationError(
            f"attack {attack}: {int((~is_finite).sum())} of {len(x)} adversarial images hold values that are not "
            "finite, so accuracy is meaningless"
        )
    is_outside = ~threat.contains(x_adv, x)
    if bool(is_outside.any()):
        farthest = float(threat.size(x_adv - x).max())
        raise EvaluationError(
            f"attack {attack}: {int(is_outside.sum())} of {len(x)} adversarial images lie outside the threat set "
            f"{threat}: distance up to {farthest:.6g} where {threat.radius:.6g} is allowed, pixels from "
            f"{float(x_adv.min()):.6g} to {float(x_adv.max()):.6g} where [0, 1] is; the accuracy would be too low"
        )
