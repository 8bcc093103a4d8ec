"""What evaluations take from nobody's word: the class of an image, and where an adversarial one lies."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.losses import margin
from robustcli.errors import EvaluationError
from robustcli.threat.threat import ThreatModel


@dataclass(frozen=True)
class Judgement:
    """Classes (n,) that a model gives to images, margins (n,) of wrong logits over true ones, and how many classes."""

    predictions: Tensor
    margins: Tensor
    classes: int


def judged(model: nn.Module, x: Tensor, y: Tensor, looks: int) -> Judgement:
    """Classes and margins of images; of several looks, the class seen most often and the mean margin.

    Raises:
        EvaluationError: some logit is not finite; an argmax over NaN would be a number about nothing.
    """
    votes, margins = None, torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(looks):
        with torch.no_grad():
            logits: Tensor = model(x)
        is_finite = torch.isfinite(logits).all(1)
        if not bool(is_finite.all()):
            raise EvaluationError(
                f"the model gives logits that are not finite on {int((~is_finite).sum())} of {len(x)} images: "
                "accuracy would mean nothing"
            )
        vote = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        votes = vote if votes is None else votes + vote
        margins += margin(logits, y) / looks
    assert votes is not None
    return Judgement(votes.argmax(1), margins, votes.shape[1])


def require_inside(attack: str, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    """Refuse adversarial images that are not finite, or lie outside the threat set around x.

    Raises:
        EvaluationError: how many, and by how much; the attack is at fault, not the model.
    """
    if x_adv.shape != x.shape:
        raise EvaluationError(
            f"attack {attack}: returned images of shape {tuple(x_adv.shape)} for images of shape {tuple(x.shape)}"
        )
    is_finite = torch.isfinite(x_adv).flatten(1).all(1)
    if not bool(is_finite.all()):
        raise EvaluationError(
            f"attack {attack}: {int((~is_finite).sum())} of {len(x)} adversarial images hold values that are not "
            "finite; the accuracy would mean nothing"
        )
    is_outside = ~threat.contains(x_adv, x)
    if bool(is_outside.any()):
        farthest = float(threat.size(x_adv - x).max())
        raise EvaluationError(
            f"attack {attack}: {int(is_outside.sum())} of {len(x)} adversarial images lie outside the threat set "
            f"{threat}: distance up to {farthest:.6g} where {threat.radius:.6g} is allowed, pixels from "
            f"{float(x_adv.min()):.6g} to {float(x_adv.max()):.6g} where [0, 1] is; the accuracy would be too low"
        )
