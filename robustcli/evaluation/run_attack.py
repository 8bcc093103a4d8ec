"""One call of an attack: search, then check and classify every returned point."""

import time
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustcli.attacks.ascent import Look, gradient_ascent
from robustcli.attacks.gradient import Objective
from robustcli.attacks.losses import LOSSES
from robustcli.attacks.surrogate import Surrogate
from robustcli.evaluation.confirm import predict, require_inside
from robustcli.evaluation.noted_warnings import noted_warnings
from robustcli.evaluation.passes import count_passes
from robustcli.evaluation.searches import Searches
from robustcli.evaluators import Stage
from robustcli.threat.noise import IndexedNoise, Noise, derive
from robustcli.threat.threat import ThreatModel

# Gradient steps in single precision after a search in bf16, and their length in radii.
_LAST_STEPS, _LAST_LENGTH = 10, 1 / 20


@dataclass(frozen=True)
class AttackOutcome:
    """Findings of one call of an attack, confirmed by the model.

    Args:
        stage: name of the stage.
        numbers: (m,) indices of the attacked images in the data set.
        is_broken: (m,) bool.
        predictions: (m,) class of the point that the attack returned.
        margins: (m,) largest wrong logit minus the true one there; positive if broken.
        sizes: (m,) distance from the clean image, in the norm of the threat model.
        points: (b, c, h, w) adversarial images of the broken images, in the same order; None if they are not kept.
        tried: (m, c, h, w) points of all images for a later stage to start at; None if they are not handed on.
        forwards, gradients: numbers of examples in forward passes and in gradients.
        seconds: wall-clock time.
        warnings: warnings that the attack raised.
    """

    stage: str
    numbers: Tensor
    is_broken: Tensor
    predictions: Tensor
    margins: Tensor
    sizes: Tensor
    points: Tensor | None
    forwards: int
    gradients: int
    seconds: float
    warnings: tuple[str, ...] = ()
    tried: Tensor | None = None

    def among(self, images: Collection[int]) -> "AttackOutcome":
        """Return the outcome for some of the images; counts remain those of the whole call."""
        is_in = torch.tensor([number in images for number in self.numbers.tolist()], dtype=torch.bool)
        if bool(is_in.all()):
            return self
        return replace(
            self,
            numbers=self.numbers[is_in],
            is_broken=self.is_broken[is_in],
            predictions=self.predictions[is_in],
            margins=self.margins[is_in],
            sizes=self.sizes[is_in],
            points=None if self.points is None else self.points[is_in[self.is_broken]],
            tried=None if self.tried is None else self.tried[is_in],
        )


def run_attack(
    stage: Stage,
    model: nn.Module,
    searches: Searches,
    x: Tensor,
    y: Tensor,
    rng: IndexedNoise,
    size: int,
    starts: Tensor | None = None,
    *,
    threat: ThreatModel,
    votes: int,
) -> AttackOutcome:
    """Run the attack of a stage on some images and confirm the result.

    Args:
        model: the network.
        searches: networks that the attack may search with.
        size: largest number of points in one pass.
        starts: points to start at; None is where the attack starts by itself.
        votes: forward passes that vote on the class of an image.

    Raises:
        EvaluationError: the attack left the threat set, or logits are not finite.
    """
    stage = stage.limited(size)
    begun = time.perf_counter()
    numbers = rng.index.cpu()
    with noted_warnings() as caught, count_passes(model, *searches.of(stage)) as passes:
        surrogate, search = searches.choose(stage, x, size)
        # A model that draws its own noise draws the same for the same images.
        torch.manual_seed(derive(rng.seed, stage.name, int(numbers[0])))
        points = _search(stage, model, surrogate, search, x, y, threat, rng, starts)
        require_inside(stage.name, points, x, threat)
        found = predict(model, points, y, votes)
    is_broken = found.predictions != y
    return AttackOutcome(
        stage=stage.name,
        numbers=numbers,
        is_broken=is_broken.cpu(),
        predictions=found.predictions.cpu(),
        margins=found.margins.cpu(),
        sizes=threat.size(points - x).cpu(),
        points=points[is_broken].contiguous().cpu(),
        forwards=passes.forwards,
        gradients=passes.gradients,
        seconds=time.perf_counter() - begun,
        warnings=tuple(caught),
        tried=points.cpu() if stage.hands_on else None,
    )


def _search(
    stage: Stage,
    model: nn.Module,
    surrogate: Surrogate | None,
    search: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    rng: IndexedNoise,
    starts: Tensor | None,
) -> Tensor:
    """Return the points that the attack found, not yet confirmed.

    Images that fool a copy of the network, but not the network, are attacked again with the network. After a search in
    bf16 the other images that survive take a few last steps with the network.
    """

    def attack(network: nn.Module, rows: Tensor | slice, noise: Noise) -> Tensor:
        # A copy of x, in case an attack writes into its input.
        given = (network, x[rows].clone(), y[rows], threat, noise.split(stage.noise))
        found = stage.attack(*given) if starts is None else stage.attack.improve(starts[rows], *given)
        return found.detach()

    points = attack(search, slice(None), rng)
    if surrogate is None or not surrogate.is_copy or points.shape != x.shape:
        return points
    with torch.no_grad():
        is_right = model(points).argmax(1) == y
        is_rejected = is_right & (search(points).argmax(1) != y)
    rejected = is_rejected.nonzero().flatten()
    if len(rejected):
        points[rejected] = attack(model, rejected, rng.rows(rejected))
    left = (is_right & ~is_rejected).nonzero().flatten()
    if len(left) and surrogate.is_coarse and not stage.is_black_box:
        points[left] = _last_steps(model, points[left], x[left], y[left], threat)
    return points


def _last_steps(model: nn.Module, points: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Take a few steps along the gradient of the margin; a point that fools the network stays."""

    def move(look: Look) -> Tensor:
        step = threat.ascent(look.grad, look.points, _LAST_LENGTH * threat.radius)
        is_fooled = (look.scores > 0).view(-1, 1, 1, 1)
        return torch.where(is_fooled, look.points, threat.project(look.points + step, x))

    return gradient_ascent(Objective.at(model, x, y, LOSSES["margin"]), points, _LAST_STEPS, move)
