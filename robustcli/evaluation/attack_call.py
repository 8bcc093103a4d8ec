"""What one call of an attack proposes, also where it searched in haste, and what comes of it."""

import time
import warnings

import torch
from torch import Tensor, nn

from robustcli.attacks.gradient import input_gradient
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.surrogate import SurrogateCopy
from robustcli.evaluation.confirm import judged, require_inside
from robustcli.evaluation.isolation import passes_counted
from robustcli.evaluation.outcomes import Strike
from robustcli.evaluators import Stage
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel

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
        search: what the attack is given: the network, or a SurrogateCopy.
    """
    # A copy of x: an attack that writes into its input must not move what it is compared with.
    points: Tensor = stage.attack(search, x.clone(), y, threat, rng.split(stage.noise)).detach()
    if not (isinstance(search, SurrogateCopy) and search.is_fast) or points.shape != x.shape:
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
        grad, scores, _ = input_gradient(model, points, LOSSES["margin"], y)
        moved = threat.project(points + threat.ascent(grad, points, _LAST_LENGTH * threat.radius), x)
        points = torch.where((scores > 0).view(-1, 1, 1, 1), points, moved)
    return points


def struck(
    stage: Stage,
    model: nn.Module,
    search: nn.Module,
    x: Tensor,
    y: Tensor,
    rng: IndexedNoise,
    size: int,
    *,
    threat: ThreatModel,
    looks: int,
) -> Strike:
    """One call of an attack with at most `size` points in one pass, judged."""
    stage = stage.with_points(size)
    begun = time.perf_counter()
    numbers = rng.index.cpu()
    # A model that draws noise of its own draws the same for the same images.
    torch.manual_seed(derive(rng.seed, stage.name, int(numbers[0])))
    with warnings.catch_warnings(record=True) as caught, passes_counted(model, search) as passes:
        # Deprecations stay with the filters of the process: they are about code, not about the number.
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        points = propose(stage, model, search, x, y, threat, rng)
        require_inside(stage.name, points, x, threat)
        judgement = judged(model, points, y, looks)
    is_broken = judgement.predictions != y
    return Strike(
        stage=stage.name,
        numbers=numbers,
        is_broken=is_broken.cpu(),
        predictions=judgement.predictions.cpu(),
        margins=judgement.margins.cpu(),
        sizes=threat.size(points - x).cpu(),
        points=points[is_broken].contiguous().cpu(),
        forwards=passes.forwards,
        gradients=passes.gradients,
        seconds=time.perf_counter() - begun,
        warnings=tuple(str(warning.message) for warning in caught),
    )
