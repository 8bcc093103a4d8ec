"""Smoothing by Gaussian noise: votes of noisy copies of an image, and the radius that they certify."""

from dataclasses import dataclass
from fractions import Fraction

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from robustcli.errors import EvaluationError
from robustcli.evaluators import chunks
from robustcli.statistics import clopper_pearson
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

# Copies drawn at once; a constant, because the noise must not depend on the batch size.
_DRAWN = 1000


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """The network smoothed by Gaussian noise, and the certificates of its classes.

    Args:
        sigma: standard deviation of the noise, in pixels of [0, 1]; noisy images are not clipped.
        selection: noisy copies that choose the class.
        samples: noisy copies that bound its probability.
        alpha: probability with which the certificate of an image may be wrong.
        batch_size: noisy images per pass.
    """

    sigma: float
    selection: int
    samples: int
    alpha: float
    batch_size: int

    def radii_of(self, model: nn.Module, x: Tensor, y: Tensor, rng: IndexedNoise) -> tuple[list[float], list[float]]:
        """Certified l2 radius of every image, -1 where the network abstains; and the same with -1 for wrong classes."""
        radii, certified = [], []
        for row in torch.arange(len(x), device=x.device):
            own = rng.rows(row[None])
            first = self._votes(model, x[row], own.split("selection"), self.selection)
            chosen = int(first.argmax())
            votes = int(self._votes(model, x[row], own.split("samples"), self.samples)[chosen])
            radii.append(self.radius(votes))
            certified.append(radii[-1] if chosen == int(y[row]) else -1.0)
        return radii, certified

    def radius(self, votes: int) -> float:
        """Certified l2 radius for this number of votes; -1 if the network abstains."""
        # One-sided interval: all of alpha is on the lower side. Without any chance of an error nothing is certain.
        low, _ = clopper_pearson(votes, self.samples, 1 - 2 * self.alpha) if 0 < self.alpha < 0.5 else (0.0, 1.0)
        return self.sigma * float(ndtri(low)) if low > 0.5 else -1.0

    def _votes(self, model: nn.Module, image: Tensor, rng: IndexedNoise, count: int) -> Tensor:
        """Number of votes of noisy copies of one image (c, h, w) for each class: (k,)."""
        votes: Tensor | None = None
        for number, part in enumerate(chunks(count, _DRAWN)):
            size = part.stop - part.start
            noise = rng.split(f"part {number}").normal(image.expand(1, size, *image.shape))[0]
            logits = self._logits(model, image + self.sigma * noise)
            found = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
            votes = found if votes is None else votes + found
        assert votes is not None
        return votes

    def _logits(self, model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = torch.cat([model(x[part]) for part in chunks(len(x), self.batch_size)])
        if not bool(torch.isfinite(logits).all()):
            raise EvaluationError("the model gives logits that are not finite on noisy images")
        return logits


def covering(threat: ThreatModel, values: int) -> float:
    """Radius of the smallest l2 ball around an image that contains its threat set."""
    return threat.radius * values**0.5 if threat.norm == "linf" else float(Fraction(threat.eps))
