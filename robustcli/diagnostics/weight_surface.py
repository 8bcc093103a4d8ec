"""Loss surface around the weights, along random directions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.pgd import Pgd
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import attacked, logits_of
from robustcli.registry.types import BatchSize, Count, Positive
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

Direction = dict[str, Tensor]
# Avoids a division by zero for a filter of zeros.
_TINY = 1e-10


@DIAGNOSTICS.register("weight_surface", smoke={"half": 1})
@dataclass(frozen=True, kw_only=True)
class WeightSurface:
    """Mean cross-entropy at w + alpha d, or at w + alpha d + beta e, for random directions d and e.

    Each filter of a direction (the weights of one output) is scaled to the norm of the network's filter, so that
    networks whose weights differ only in scale look the same. Biases, batch norms and running statistics stay fixed.
    If adversarial images are recomputed at every point, the surface is that of the robust loss; a flat one goes with a
    small gap between training and test. The references use training images; here they are the images given.

    Args:
        directions: 1 for a curve, 2 for a surface.
        points: adversarial images recomputed at every point, those of the unperturbed weights (held), or clean images.
        half: grid points on each side of the weights; 10 makes 21, or 21 x 21.
        reach: largest alpha and beta.
        images: number of images; the mean is over the first N.
        attack: attack for the adversarial images; PGD with 10 steps on the cross-entropy.

    Reference: Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018; with adversarial images Wu, Xia
        and Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020.
    """

    directions: Literal[1, 2] = 1
    points: Literal["regenerated", "held", "clean"] = "regenerated"
    half: Count = 10
    reach: Positive = 1.0
    images: Count = 256
    batch_size: BatchSize = 250
    attack: Attack = field(default_factory=Pgd)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        x, y, rng = x[: self.images], y[: self.images], rng.rows(torch.arange(min(self.images, len(x))))
        ways = [random_direction(model, derive(rng.seed, "direction", number)) for number in range(self.directions)]
        held = self._points(model, x, y, threat, rng) if self.points == "held" else x
        ticks = [self.reach * step / self.half for step in range(-self.half, self.half + 1)]

        def loss_at(*shares: float) -> float:
            with moved(model, ways, shares):
                points = self._points(model, x, y, threat, rng) if self.points == "regenerated" else held
                losses = nn.functional.cross_entropy(logits_of(model, points, self.batch_size), y, reduction="none")
                return float(losses.double().mean())

        if self.directions == 1:
            return {"images": len(x), "curve": [{"alpha": alpha, "loss": loss_at(alpha)} for alpha in ticks]}
        grid = [[loss_at(alpha, beta) for beta in ticks] for alpha in ticks]
        return {"images": len(x), "surface": {"alpha": ticks, "beta": ticks, "loss": grid}}

    def _points(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise) -> Tensor:
        # The same noise at all points of the plot, so that differences come from the weights.
        return attacked(self.attack, model, x, y, threat, rng.split("attack"), self.batch_size)


def random_direction(model: nn.Module, seed: int) -> Direction:
    """A normal direction by parameter name, each filter scaled to the norm of the weights; none for 1-d parameters."""
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        # Drawn on the CPU, so that the direction is the same on every device.
        drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
        lengths, own = (tensor.detach().flatten(1).norm(dim=1) for tensor in (drawn, parameter))
        direction[name] = drawn * (own / (lengths + _TINY)).view(-1, *[1] * (parameter.dim() - 1))
    return direction


@contextmanager
def moved(model: nn.Module, ways: list[Direction], shares: tuple[float, ...]) -> Iterator[None]:
    """Move the weights by multiples of some directions; restore them exactly afterwards."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for way in ways for name in way}
    try:
        with torch.no_grad():
            for way, share in zip(ways, shares, strict=True):
                for name, delta in way.items():
                    parameters[name].add_(delta, alpha=share)
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                parameters[name].copy_(weight)
