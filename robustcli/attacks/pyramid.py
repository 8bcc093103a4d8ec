"""A perturbation at several resolutions, larger for coarse ones: the attack of PyramidAT."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.ascent import step_length
from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES, AttackLoss, cross_entropy
from robustcli.attacks.matched_masks import masks_matched
from robustcli.errors import RobustCliError
from robustcli.registry.types import Positive, Size
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel


def _lucky_number(logits: Tensor, luck: Tensor) -> Tensor:
    """Map a uniform number in [0, 1) to a class."""
    return (luck * logits.shape[1]).long().clamp_max(logits.shape[1] - 1)


def _towards_random_class(rng: Noise, x: Tensor) -> tuple[AttackLoss, Tensor]:
    luck = rng.uniform(x[:, :1, :1, :1]).flatten()
    score = AttackLoss(
        refer=lambda model, x, y: luck,
        score=lambda logits, luck: -cross_entropy(logits, _lucky_number(logits, luck)),
    )
    return score, luck


def spread(grid: Tensor, side: int, like: Tensor) -> Tensor:
    """Repeat each cell of a grid (n, c, rows, columns) as a block of side x side pixels, cropped to the image size."""
    blocks = grid.repeat_interleave(side, 2).repeat_interleave(side, 3)
    return blocks[:, :, : like.shape[2], : like.shape[3]]


def _cut(x: Tensor) -> Tensor:
    """Clip x to [0, 1]; pixels at the bounds keep half of their gradient, as in the released code.

    With `clamp`, whose gradient is zero there, a black or white pixel would never move.
    """
    return torch.minimum(torch.maximum(x, x.new_zeros(())), x.new_ones(()))


@ATTACKS.register(
    "pyramid",
    passes=(5, 5, 0),
    norms=("linf",),
    goes_farther=True,
    smoke={"steps": 2, "sides": [4, 1], "multipliers": [2, 1]},
)
@dataclass(frozen=True, kw_only=True)
class Pyramid(Attack):
    """Grids of cells: x' = cut(... cut(x + m_1 U_1(d_1)) ... + m_S U_S(d_S)), one grid d_s for each resolution.

    U_s repeats each cell as a block of side_s x side_s pixels, and cut clips to [0, 1]. All grids start at zero and
    take sign steps along their own gradients; each is limited to eps, so the sum may be (m_1 + ... + m_S) eps away
    unless `clip` limits it. If the network is attacked in train mode with dropout or stochastic depth, all passes of
    the search use the same masks.

    One resolution of side 1 and multiplier 1 with aim "away" is PGD from the clean image, except that a pixel that
    leaves [0, 1] stays outside: cells are not clipped, and have no gradient there.

    When to use: to train transformers on large images (see pyramid_at).

    First setting: the defaults on 224 pixels.

    Args:
        steps: gradient steps.
        step_size: length of one step of a cell in the unit of eps; null is a quarter of eps.
        sides: side of the cells of each grid, in pixels; cells at the edge are cropped.
        multipliers: m_s, one for each side.
        aim: "random_class": lower the cross-entropy of a random class, which may be the label, as published; "away":
            raise that of the label.
        clip: clip the sum to this many times eps. null does not clip, so results leave the threat set: this is for
            training; evaluations refuse it, and values above 1.

    Reference: Herrmann et al., "Pyramid Adversarial Training Improves ViT Performance", CVPR 2022.
    """

    steps: Size = 5
    step_size: Positive | None = None
    sides: tuple[int, ...] = (32, 16, 1)
    multipliers: tuple[float, ...] = (20.0, 10.0, 1.0)
    aim: Literal["random_class", "away"] = "random_class"
    clip: Positive | None = 1.0

    def __post_init__(self) -> None:
        if len(self.sides) != len(self.multipliers):
            raise RobustCliError(
                f"attack pyramid: {len(self.sides)} sides and {len(self.multipliers)} multipliers; give one of each "
                "for every resolution"
            )
        if not self.sides or min(self.sides) < 1:
            raise RobustCliError(f"attack pyramid: sides {list(self.sides)}; name at least one, each 1 or more pixels")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        threat.require_norm("pyramid", "linf")
        loss, reference = (LOSSES["ce"], y) if self.aim == "away" else _towards_random_class(rng, x)
        step_size = step_length(self.step_size, threat)
        grids = [x.new_zeros(*x.shape[:2], -(-x.shape[2] // side), -(-x.shape[3] // side)) for side in self.sides]
        with masks_matched(model, x.device):
            for _ in range(self.steps):
                grids = [grid.detach().requires_grad_() for grid in grids]
                with torch.enable_grad():
                    x_adv = self._composed(x, grids)
                grad, _, _ = input_gradient(model, x_adv, loss, reference)
                grads = torch.autograd.grad(x_adv, grids, grad)
                with torch.no_grad():
                    grids = [
                        threat.bound(grid + threat.ascent(slope, grid, step_size), threat.radius)
                        for grid, slope in zip(grids, grads, strict=True)
                    ]
        x_adv = self._composed(x, grids)
        if self.clip is None:
            return x_adv
        return (x + threat.bound(x_adv - x, self.clip * threat.radius)).clamp(0, 1)

    def _composed(self, x: Tensor, grids: list[Tensor]) -> Tensor:
        for side, multiplier, grid in zip(self.sides, self.multipliers, grids, strict=True):
            x = _cut(x + multiplier * spread(grid, side, x))
        return x
