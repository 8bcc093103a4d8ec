"""Auto-PGD, for every norm: an attack with no step size to tune."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.attacks import ATTACKS, Attack
from robustcli.attacks.adaptive_steps import MomentumRule, Rows, SparseRule, StepRule
from robustcli.attacks.gradient import mean_input_gradient
from robustcli.attacks.losses import LOSSES, AttackLoss, labels_of, targeted_dlr
from robustcli.attacks.targets import likely_classes, nearest_classes
from robustcli.registry.types import Count
from robustcli.threat.noise import Noise
from robustcli.threat.threat import ThreatModel

# Losses that aim at one wrong class at a time.
_TARGETED = ("targeted_dlr", "nearest_dlr")


@ATTACKS.register("apgd", passes=(101, 100, 0), smoke={"steps": 4})
@dataclass(frozen=True, kw_only=True)
class Apgd(Attack):
    """Gradient steps that begin long and get shorter where they stop to pay off; fooled images stop.

    A run ends with its first point that fools the model, and that point is returned; otherwise the point of all
    runs with the highest loss is. The logits that a gradient came from are also the test of its point, so a run
    that ends after i moves costs i + 1 forwards. Runs of one image, from fresh starts and towards other targets,
    go on side by side where a pass has room; what is returned is the same as if they came one after the other.

    When to use: as the strongest single gradient attack that needs no step size.

    First setting: the defaults with loss: ce; then targeted_dlr, which finds what ce misses.

    Args:
        steps: moves of a run.
        restarts: runs from fresh starts, for each target.
        loss: "ce", "margin", "probability_margin", "dlr" (needs 3 classes), or "targeted_dlr" (needs 4), which aims
            at one wrong class at a time; "nearest_dlr" is the same with other targets.
        targets: wrong classes that "targeted_dlr" aims at, the most likely ones of the clean image first; at most
            all that there are. "nearest_dlr" aims at those whose boundary would be nearest if logits were linear, among
            the 9 most likely ones, and takes a gradient for each of these.
        gradients: whose mean gives a step its direction, for models whose logits vary; loss and test are those of
            only the last one, as in the published code.
        radius: "fixed", or "shrinking": 30 % of the moves within 3 eps, 30 % within 2 eps and the others within
            eps, each part from the best point of the one before. Published for l1.
        batch_size: points in one pass; null is as many as there are images.

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
        """Points of one image that may go through the network together."""
        return self.restarts * (self.targets if self.loss in _TARGETED else 1)

    def limited(self, points: int, images: int) -> "Apgd":
        if self.batch_size is None:
            return self
        # A limit below the images per call was chosen by the user, and is never raised.
        return replace(self, batch_size=points if self.batch_size >= images else min(self.batch_size, points))

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
            # Without a number: batches of one evaluation say the same, and it is kept once.
            warnings.warn(
                "the gradient of the DLR loss was exactly zero at starts of APGD; gradient attacks cannot move there, "
                "and the true robust accuracy may be lower",
                stacklevel=2,
            )
        return found.points

    def _pairs(self, model: nn.Module, x: Tensor, labels: Tensor, threat: ThreatModel, limit: int) -> Tensor:
        """Labels and the wrong classes to aim at: (targets, n, 2)."""
        parts = zip(torch.split(x, limit), torch.split(labels, limit), strict=True)
        if self.loss == "nearest_dlr":
            wrong = torch.cat([nearest_classes(model, part, own, threat) for part, own in parts])
        else:
            wrong = torch.cat([likely_classes(model, part, own) for part, own in parts])
        return torch.stack([labels.expand_as(wrong.T), wrong.T], 2)[: self.targets]


@dataclass
class _Found:
    """The worst point of every image so far.

    Tasks are the runs of all images, numbered run by run: of n images, task t is run t // n of image t % n.

    Args:
        points, losses: (n, c, h, w) and (n,).
        broken_by: (n,) on the CPU, the first run that fooled the model; `runs` where none did.
        runs: of every image.
    """

    points: Tensor
    losses: Tensor
    broken_by: Tensor
    runs: int

    @classmethod
    def nothing(cls, x: Tensor, runs: int) -> "_Found":
        return cls(x.clone(), x.new_full((len(x),), -torch.inf), torch.full((len(x),), runs), runs)

    def is_open(self, tasks: Tensor) -> Tensor:
        """Whether no earlier run of the same image has fooled the model: bool, on the CPU."""
        image, run = self.parts(tasks)
        return run < self.broken_by[image]

    def parts(self, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Image and run of tasks."""
        images = max(len(self.points), 1)
        return tasks % images, tasks // images

    def take(self, tasks: Tensor, rows: Rows, is_fooled: Tensor) -> None:
        """Keep where runs ended: a point that fools the model wins over any loss, and the earliest run wins."""
        device = self.points.device
        images, runs = self.parts(tasks)
        # Run by run: the same image may be there with several.
        for run in sorted(set(runs.tolist())):
            row = (runs == run).nonzero().flatten()
            image = images[row]
            wins = is_fooled[row] & (run < self.broken_by[image])
            competes = ~is_fooled[row] & (self.broken_by[image] == self.runs)
            self.broken_by[image[wins]] = run
            row, image, wins, competes = (part.to(device) for part in (row, image, wins, competes))
            wins |= competes & (rows.best_loss[row] > self.losses[image])
            points = torch.where(is_fooled.to(device)[row].view(-1, 1, 1, 1), rows.point[row], rows.best[row])
            self.points[image[wins]] = points[wins]
            self.losses[image[wins]] = rows.best_loss[row][wins]


@dataclass
class _Search:
    """All runs of all images of one call.

    What decides when rows come and go is kept on the CPU; one transfer per pass tells it which images fool the model.

    Args:
        references: what the loss needs to know of each image, for every target: (targets, n, ...).
        limit: rows in one pass.
        has_flat_starts: whether a run with something to win had a first gradient of exactly zero.
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
        """Every run from a random point of the ball's surface."""
        tasks = torch.arange(self.found.runs * len(self.x))
        rule = _rule(self.threat, self.attack.steps, has_start=False)
        self._walk(tasks, rule, lambda places: self._surface(tasks[places], self.threat))

    def in_shrinking_balls(self) -> None:
        """The same runs, a batch at a time, from the surface of the widest ball; only the last ball counts."""
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
        """Run tasks to their ends; where one leaves, the next one takes its room.

        Args:
            tasks: (m,) their numbers, on the CPU.
            start: places in `tasks` -> points where these begin.
            ends: (m, c, h, w) where best points are written to, for a ball that is too wide: fooling the model
                counts for nothing there. Without it, points go to `found`.
        """
        waiting = torch.arange(len(tasks))
        places = steps = waiting[:0]
        rows: Rows | None = None
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
            is_fooled = self._look(rows, is_first=steps == 0, is_last=bool(is_over.all()))
            leaves = is_over | is_fooled if ends is None else is_over
            if leaves.any():
                gone = leaves.nonzero().flatten()
                last = rows.at(gone.to(self.x.device))
                if ends is None:
                    self.found.take(tasks[places[gone]], last, is_fooled[gone])
                else:
                    ends[places[gone]] = last.best
                stays = (~leaves & self.found.is_open(tasks[places])).nonzero().flatten()
                places, steps, rows = places[stays], steps[stays], rows.at(stays.to(self.x.device))
            period = rule.periods[steps]
            if period.any():
                rule.adapt(rows, period.to(self.x.device))
            rule.move(rows)
            steps = steps + 1

    def _look(self, rows: Rows, *, is_first: Tensor, is_last: bool) -> Tensor:
        """One pass over all points, which learn loss and gradient. Returns a mask of the fooling ones, on the CPU."""
        if is_last:
            with torch.no_grad():
                logits = self.model(rows.point)
                grad, loss = rows.grad, self.loss.score(logits, rows.reference)
        else:
            count = self.attack.gradients
            grad, loss, logits = mean_input_gradient(self.model, rows.point, self.loss, rows.reference, count)
        rows.learn(grad, loss)
        is_fooled: Tensor = (logits.argmax(1) != rows.labels).cpu()
        if is_first.any() and not is_last:
            is_flat = (grad[is_first & ~is_fooled] == 0).flatten(1).all(1)
            self.has_flat_starts |= bool(is_flat.any())
        return is_fooled

    def _begun(self, tasks: Tensor, points: Tensor, rule: StepRule) -> Rows:
        """Rows of tasks that begin."""
        images, runs = (part.to(self.x.device) for part in self.found.parts(tasks))
        references = self.references[runs // self.attack.restarts, images]
        rows = Rows.beginning(self.x[images], self.labels[images], references, points)
        rule.begin(rows)
        return rows

    def _surface(self, tasks: Tensor, ball: ThreatModel) -> Tensor:
        """Random starts; the noise is that of the image and the run."""
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
