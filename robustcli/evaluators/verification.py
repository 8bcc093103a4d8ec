"""What evaluators take from nobody's word: who is right when clean, and where adversarial images lie."""

import torch
from torch import Tensor, nn

from robustcli.errors import EvaluationError
from robustcli.evaluators import chunks, is_correct
from robustcli.threat import ThreatModel


def right_when_clean(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Which unperturbed images the model classifies as y: bool (n,), on the CPU."""
    is_right = torch.zeros(len(x), dtype=torch.bool)
    for part in chunks(len(x), batch_size):
        is_right[part] = is_correct(model, x[part], y[part]).cpu()
    return is_right


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
