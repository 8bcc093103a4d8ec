"""Calibration of the confidence on clean and adversarial images."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import attacked, logits_of, pgd
from robustcli.registry.types import BatchSize, Count
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("calibration")
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Expected calibration error, negative log-likelihood and Brier score, on clean and on adversarial images.

    The expected calibration error is the mean over images of |accuracy - confidence| of the image's bin. The Brier
    score sums over classes, so it lies in [0, 2]; the likelihood is in nats.

    Args:
        bins: number of confidence bins of equal width.
        attack: attack on all images; PGD with 20 steps on the cross-entropy.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; Brier, 1950.
    """

    bins: Count = 15
    batch_size: BatchSize = 250
    attack: Attack = field(default_factory=pgd)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        x_adv = attacked(self.attack, model, x, y, threat, rng.split("attack"), self.batch_size)
        return {
            "rows": [
                {"images": words, **_scores(logits_of(model, points, self.batch_size), y, self.bins)}
                for words, points in (("clean", x), ("adversarial", x_adv))
            ]
        }


def _scores(logits: Tensor, y: Tensor, bins: int) -> dict[str, float]:
    logs = logits.double().log_softmax(1)
    shares = logs.exp()
    confidence, predictions = shares.max(1)
    is_right = (predictions == y).double()
    # Bins are closed above: a confidence of exactly 1 lies in the last one.
    place = (confidence * bins).ceil().long() - 1
    excess = torch.zeros(bins, dtype=torch.float64, device=y.device).index_add_(0, place, is_right - confidence)
    one_hot = nn.functional.one_hot(y, shares.shape[1])
    return {
        "accuracy": float(is_right.mean()),
        "confidence": float(confidence.mean()),
        "ece": float(excess.abs().sum() / len(y)),
        "nll": float(-logs.gather(1, y[:, None]).mean()),
        "brier": float((shares - one_hot).square().sum(1).mean()),
    }
