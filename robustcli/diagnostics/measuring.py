"""Helpers of diagnostics: logits, gradients and attacks in batches, and summaries."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.pgd import Pgd
from robustcli.errors import EvaluationError
from robustcli.evaluation.confirm import require_inside
from robustcli.evaluators import chunks
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


def pgd() -> Attack:
    """The attack of most diagnostics: PGD with 20 steps on the cross-entropy."""
    return Pgd(steps=20)


def margin_pgd() -> Attack:
    """The attack of most curves: PGD with 20 steps on the margin, which keeps adversarial examples."""
    return Pgd(steps=20, loss="margin", keep="fooled")


def in_batches(count: int, batch_size: int, measure: Callable[[slice], Tensor]) -> Tensor:
    """Apply `measure` to slices of range(count) and concatenate the results."""
    return torch.cat([measure(part) for part in chunks(count, batch_size)])


def logits_of(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """Logits (n, k) of images, without a graph.

    Raises:
        EvaluationError: some logit is not finite.
    """

    def forward(part: slice) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(x[part])
        is_finite = torch.isfinite(logits).all(1)
        if not bool(is_finite.all()):
            raise EvaluationError(
                f"the model gives logits that are not finite on {int((~is_finite).sum())} of {len(logits)} images, so "
                "diagnostics are meaningless"
            )
        return logits

    return in_batches(len(x), batch_size, forward)


def gradients_of(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    """Gradient of each image's cross-entropy in the image: (n, c, h, w)."""
    return in_batches(len(x), batch_size, lambda part: input_gradient(model, x[part], LOSSES["ce"], y[part])[0])


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosine of each pair of (n, ...), as (n,) in double precision so that squares of small numbers do not vanish.

    NaN where either vector is zero.
    """
    one, other = one.flatten(1).double(), other.flatten(1).double()
    found: Tensor = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))
    return found


def attacked(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise, batch_size: int
) -> Tensor:
    """Adversarial examples of all x, also of misclassified ones.

    Raises:
        EvaluationError: the attack left the threat set.
    """
    rows = torch.arange(len(x), device=x.device)

    def craft(part: slice) -> Tensor:
        # A copy, in case an attack writes into its input.
        points = attack(model, x[part].clone(), y[part], threat, rng.rows(rows[part])).detach()
        require_inside(type(attack).__name__, points, x[part], threat)
        return points

    return in_batches(len(x), batch_size, craft)


def summary(values: Tensor) -> dict[str, float | None]:
    """Mean, median and quantiles of values (n,); None if n is 0."""
    shares = {"least": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "greatest": 1.0}
    if not len(values):
        return dict.fromkeys(("mean", *shares))
    doubles = values.detach().double().cpu()
    ordered = doubles.sort().values
    found: dict[str, float | None] = {"mean": float(doubles.mean())}
    for name, share in shares.items():
        # Interpolated here: torch.quantile refuses more than 16 million values.
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        found[name] = float(ordered[low].lerp(ordered[high], place - low))
    return found
