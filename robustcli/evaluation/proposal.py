"""What one call of an attack proposes, also where it searched in haste."""

import torch
from torch import Tensor, nn

from robustcli.attacks.crafting import ascend
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.search import SearchNetwork
from robustcli.evaluators import Stage
from robustcli.noise import IndexedNoise
from robustcli.threat import ThreatModel

# Gradient steps in single precision from where a search in bf16 ended, and their length in radii.
_LAST_STEPS, _LAST_LENGTH = 10, 1 / 20


def propose(
    stage: Stage, model: nn.Module, search: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
) -> Tensor:
    """Adversarial images of one call of a stage's attack.

    After a search in bf16, images that fool the copy and not the network are attacked again with the network, and
    from where the search of the others ended the last steps are taken with the network.

    Args:
        model: the network.
        search: what the attack is given: the network, or a SearchNetwork.
    """
    # A copy of x: an attack that writes into its input must not move what it is compared with.
    points: Tensor = stage.attack(search, x.clone(), y, threat, rng.split(stage.noise)).detach()
    if not (isinstance(search, SearchNetwork) and search.is_fast) or points.shape != x.shape:
        return points
    with torch.no_grad():
        is_right = model(points).argmax(1) == y
        is_rejected = is_right & (search(points).argmax(1) != y)
    rejected = is_rejected.nonzero().flatten()
    if len(rejected):
        noise = rng.rows(rejected).split(stage.noise)
        points[rejected] = stage.attack(model, x[rejected].clone(), y[rejected], threat, noise).detach()
    left = (is_right & ~is_rejected).nonzero().flatten()
    if len(left) and not stage.is_black_box:
        points[left] = _last_steps(model, points[left], x[left], y[left], threat)
    return points


def _last_steps(model: nn.Module, points: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """A few steps up the margin; a point that fools the network stays."""
    for _ in range(_LAST_STEPS):
        grad, scores, _ = ascend(model, points, LOSSES["margin"], y)
        moved = threat.project(points + threat.ascent(grad, points, _LAST_LENGTH * threat.radius), x)
        points = torch.where((scores > 0).view(-1, 1, 1, 1), points, moved)
    return points
