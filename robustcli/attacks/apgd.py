"""Auto-PGD for every norm: an attack without a step size to tune."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, BatchedAttack
from robustcli.attacks.adaptive_steps import MomentumRule, PointStates, SparseRule, StepRule
from robustcli.attacks.gradient import is_fooled, mean_input_gradient, mean_score
from robustcli.attacks.losses import LOSSES, AttackLoss, labels_of, targeted_dlr
from robustcli.attacks.targets import likely_classes, nearest_classes
from robustcli.registry.types import Count
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel, per_example

# Losses that target one wrong class at a time.
_TARGETED = ("targeted_dlr", "nearest_dlr")


@ATTACKS.register("apgd", passes=(101, 100, 0), varies_in_passes=True, smoke={"steps": 4})
@dataclass(frozen=True, kw_only=True)
class Apgd(BatchedAttack):
    """Gradient ascent with large steps first, which are halved when progress stops; stops at misclassification.

    A run ends with the first misclassified point, which is returned; otherwise the point of all runs with the highest
    loss is. The forward of each gradient also classifies its point, so a run that ends after i moves costs i + 1
    forwards. Several runs of one image (restarts and targets) share a pass if it has room; the result is the same as
    one after the other.

    When to use: as the strongest single gradient attack; it needs no step size.

    First setting: the defaults with loss: ce; then targeted_dlr, which finds what ce misses.

    Args:
        steps: moves of a run.
        restarts: runs from new starts, for each target.
        loss: "ce", "margin", "probability_margin", "dlr" (needs 3 classes), or "targeted_dlr" (needs 4), which targets
            one wrong class at a time; "nearest_dlr" is the same with other targets.
        targets: wrong classes for "targeted_dlr", starting with the most likely ones of the clean image; at most all.
            "nearest_dlr" takes those with the nearest linearized boundary among the 9 most likely ones, and computes a
            gradient for each of these.
        gradients: number of averaged gradients per step, for models whose logits vary. The loss is the mean of
            all, and a run ends early at a point that every pass misclassifies; the published code goes by the last one,
            whose points often do not fool the majority of other passes.
        radius: "fixed", or "shrinking": 30 % of the moves within 3 eps, 30 % within 2 eps and the others within
            eps, each part starting at the best point of the previous one. Published for l1.
        batch_size: points in one pass; null is the number of images.

    Reference: Croce and Hein, ICML 2020 (linf, l2); Croce and Hein, ICML 2021 (l1, shrinking radius).
    """

    steps: Count = 100
    restarts: Count = 1
    loss: Literal["ce", "margin", "probability_margin", "dlr", "targeted_dlr", "nearest_dlr"] = "ce"
    targets: Count = 9
    gradients: Count = 1
    radius: Literal["fixed", "shrinking"] = "fixed"
    batch_size: Count | None = None

    @property
    def side_by_side(self) -> int:
        """Number of points of one image that may be in one pass."""
        return self.restarts * (self.targets if self.loss in _TARGETED else 1)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        labels = labels_of(y)
        limit = self.batch_size or max(len(x), 1)
        if self.loss == "targeted_dlr" or self.loss == "nearest_dlr":  # written out for the type checker
            loss = replace(LOSSES["dlr"], score=targeted_dlr)
            references = self._pairs(model, x, labels, threat, limit)
        else:
            loss = LOSSES[self.loss]
            references = loss.refer(model, x, y)[None]
        found = _Found.nothing(x, len(references) * self.restarts)
        search = _Search(self, model, x, labels, loss, references, threat, rng, limit, found)
        if self.radius == "fixed":
            search.in_one_ball()
        else:
            search.in_shrinking_balls()
        if "dlr" in self.loss and search.has_flat_starts:
            # Without the number of images, so that equal warnings of all batches are kept once.
            warnings.warn(
                "the gradient of the DLR loss was exactly zero at starts of APGD; gradient attacks cannot move there, "
                "and the true robust accuracy may be lower",
                stacklevel=2,
            )
        return found.points

    def _pairs(self, model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel, limit: int) -> Tensor:
        """Labels with target classes: (targets, n, 2)."""
        parts = zip(torch.split(x, limit), torch.split(labels, limit), strict=True)
        if self.loss == "nearest_dlr":
            wrong = torch.cat([nearest_classes(model, part, own, threat) for part, own in parts])
        else:
            wrong = torch.cat([likely_classes(model, part, own) for part, own in parts])
        return torch.stack([labels.expand_as(wrong.T), wrong.T], 2)[: self.targets]


@dataclass
class _Found:
    """The worst point of every image so far.

    Tasks are the runs of all images, numbered run by run: task t is run t // n of image t % n.

    Args:
        points, losses: (n, c, h, w) and (n,).
        broken_by: (n,) on the CPU, the first run that fooled the model; `runs` if none did.
        runs: number of runs per image.
    """

    points: Tensor
    losses: Tensor
    broken_by: Tensor
    runs: int

    @classmethod
    def nothing(cls, x: Tensor, runs: int) -> "_Found":
        return cls(x.clone(), x.new_full((len(x),), -torch.inf), torch.full((len(x),), runs), runs)

    def is_open(self, tasks: Tensor) -> Tensor:
        """Mask of the tasks whose image was not broken by an earlier run, on the CPU."""
        image, run = self.parts(tasks)
        return run < self.broken_by[image]

    def parts(self, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Image and run of each task."""
        images = max(len(self.points), 1)
        return tasks % images, tasks // images

    def take(self, tasks: Tensor, rows: PointStates, is_fooled: Tensor) -> None:
        """Record the ends of runs: a misclassified point beats any loss, and the earliest run wins."""
        device = self.points.device
        images, runs = self.parts(tasks)
        # One run at a time, because several runs of one image may be among the tasks.
        for run in sorted(set(runs.tolist())):
            row = (runs == run).nonzero().flatten()
            image = images[row]
            wins = is_fooled[row] & (run < self.broken_by[image])
            competes = ~is_fooled[row] & (self.broken_by[image] == self.runs)
            self.broken_by[image[wins]] = run
            row, image, wins, competes = (part.to(device) for part in (row, image, wins, competes))
            wins |= competes & (rows.best_loss[row] > self.losses[image])
            points = torch.where(per_example(is_fooled.to(device)[row], rows.point), rows.point[row], rows.best[row])
            self.points[image[wins]] = points[wins]
            self.losses[image[wins]] = rows.best_loss[row][wins]


@dataclass
class _Search:
    """All runs of all images of one call.

    The bookkeeping of rows is on the CPU; one transfer per pass reports which images fool the model.

    Args:
        references: references of the loss for every target: (targets, n, ...).
        limit: rows in one pass.
        has_flat_starts: whether the first gradient of a run was exactly zero at a point with a loss to gain.
    """

    attack: Apgd
    model: nn.Module
    x: Tensor
    labels: Tensor
    loss: AttackLoss
    references: Tensor
    threat: ThreatModel
    rng: Noise
    limit: int
    found: _Found
    has_flat_starts: bool = False

    def in_one_ball(self) -> None:
        """Run everything from random points of the ball's surface."""
        tasks = torch.arange(self.found.runs * len(self.x))
        rule = _rule(self.threat, self.attack.steps, has_start=False)
        self._walk(tasks, rule, lambda places: self._surface(tasks[places], self.threat))

    def in_shrinking_balls(self) -> None:
        """Run everything in shrinking balls, one batch at a time; only the last ball counts."""
        wide = math.ceil(0.3 * self.attack.steps)
        middle = min(wide, self.attack.steps - wide)
        waiting = torch.arange(self.found.runs * len(self.x))
        while len(waiting := waiting[self.found.is_open(waiting)]):
            tasks, waiting = waiting[: self.limit], waiting[self.limit :]
            x = self.x[self.found.parts(tasks)[0]]
            points = self._surface(tasks, self.threat.widened(3))
            for factor, steps in ((3, wide), (2, middle), (1, self.attack.steps - wide - middle)):
                ball = self.threat.widened(factor)
                starts, points = ball.project(points, x), torch.empty_like(points)
                rule = _rule(ball, steps, has_start=True)
                self._walk(tasks, rule, starts.__getitem__, None if factor == 1 else points)

    def _walk(
        self, tasks: Tensor, rule: StepRule, start: Callable[[Tensor], Tensor], ends: Tensor | None = None
    ) -> None:
        """Run tasks to their ends; when a row leaves, the next task takes its place.

        Args:
            tasks: (m,) numbers of the tasks, on the CPU.
            start: indices into `tasks` -> starting points.
            ends: (m, c, h, w) output for best points in a ball that is too large, where misclassification does not
                count. Without it, points go to `found`.
        """
        waiting = torch.arange(len(tasks))
        places = steps = waiting[:0]
        rows: PointStates | None = None
        while True:
            room = self.limit - len(places)
            if room and len(waiting):
                waiting = waiting[self.found.is_open(tasks[waiting])]
                coming, waiting = waiting[:room], waiting[room:]
                if len(coming):
                    places, steps = torch.cat([places, coming]), torch.cat([steps, torch.zeros_like(coming)])
                    begun = self._begun(tasks[coming], start(coming), rule)
                    rows = begun if rows is None else rows.joined(begun)
            if rows is None or not len(places):
                return
            is_over = steps == len(rule.periods) - 1
            fools = self._look(rows, is_first=steps == 0, is_last=bool(is_over.all()))
            leaves = is_over | fools if ends is None else is_over
            if leaves.any():
                gone = leaves.nonzero().flatten()
                last = rows.at(gone.to(self.x.device))
                if ends is None:
                    self.found.take(tasks[places[gone]], last, fools[gone])
                else:
                    ends[places[gone]] = last.best
                stays = (~leaves & self.found.is_open(tasks[places])).nonzero().flatten()
                places, steps, rows = places[stays], steps[stays], rows.at(stays.to(self.x.device))
            period = rule.periods[steps]
            if period.any():
                rule.adapt(rows, period.to(self.x.device))
            rule.move(rows)
            steps = steps + 1

    def _look(self, rows: PointStates, *, is_first: Tensor, is_last: bool) -> Tensor:
        """Run one pass over all points and record loss and gradient. Return a mask of the misclassified, on the CPU."""
        count = self.attack.gradients
        if is_last:
            grad = rows.grad
            loss, logits = mean_score(self.model, rows.point, self.loss, rows.reference, count)
        else:
            grad, loss, logits = mean_input_gradient(self.model, rows.point, self.loss, rows.reference, count)
        rows.learn(grad, loss)
        fools = is_fooled(logits, rows.labels).cpu()
        if is_first.any() and not is_last:
            is_flat = (grad[is_first & ~fools] == 0).flatten(1).all(1)
            self.has_flat_starts |= bool(is_flat.any())
        return fools

    def _begun(self, tasks: Tensor, points: Tensor, rule: StepRule) -> PointStates:
        """States of new tasks."""
        images, runs = (part.to(self.x.device) for part in self.found.parts(tasks))
        references = self.references[runs // self.attack.restarts, images]
        rows = PointStates.beginning(self.x[images], self.labels[images], references, points)
        rule.begin(rows)
        return rows

    def _surface(self, tasks: Tensor, ball: ThreatModel) -> Tensor:
        """Random starts; the noise depends on image and run."""
        images, runs = self.found.parts(tasks)
        starts: Tensor = torch.empty_like(self.x[images])
        for run in sorted(set(runs.tolist())):
            here = runs == run
            rng = self.rng.split(f"run {run}").rows(images[here])
            starts[here] = ball.sample_surface(self.x[images[here]], rng)
        return starts


def _rule(ball: ThreatModel, steps: int, *, has_start: bool) -> StepRule:
    if ball.has_sparse_steps:
        return SparseRule(ball, steps, has_start=has_start)
    return MomentumRule(ball, steps)
