"""The evidence of an evaluation: which attack broke which image, at which distance, and at what cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustcli.attacks import Attack
from robustcli.evaluation.run_attack import AttackOutcome
from robustcli.evaluators import Some
from robustcli.statistics import unseen_at_most
from robustcli.store.evaluations import StageResult
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel

# Values of `broken_by` besides the numbers of stages.
SURVIVES, WRONG_WHEN_CLEAN = -1, -2


@dataclass
class Evidence:
    """The findings for every image, on the CPU.

    Args:
        numbers: (n,) indices of the images in the data set.
        labels, clean: (n,) true classes, and predicted classes of the clean images.
        broken_by: (n,) number of the stage that broke the image, or SURVIVES, or WRONG_WHEN_CLEAN.
        predictions: (n,) class of the adversarial image, or of the clean image if none was found.
        margins: (n,) largest margin seen: wrong logit minus true one.
        sizes: (n,) norms of the perturbations that broke the images; 0 elsewhere.
        points: adversarial images (c, h, w) by image number, mapped from the journal if there is one; empty if they are
            not kept.
        stages: results of the stages, in order.
        clean_forwards, clean_seconds: cost of the clean images.
        classes: number of logits of the model.
        has_gradient: whether the model gives a gradient; None if no attack needed one.
        without_gradient: attacks that were skipped because the model gives none.
        warnings: without duplicates.
        attacks, threats: one for each stage.
        handed_on: margin and point (c, h, w) of the images that stages handed on, by image number.
        drawn: mask (n,) of the images drawn at random for stages that attack only a sample; None without such stages.
    """

    numbers: Tensor
    labels: Tensor
    clean: Tensor
    broken_by: Tensor
    predictions: Tensor
    margins: Tensor
    sizes: Tensor
    points: dict[int, Tensor]
    stages: list[StageResult]
    clean_forwards: int
    clean_seconds: float
    classes: int = 0
    has_gradient: bool | None = None
    without_gradient: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    attacks: tuple[Attack, ...] = ()
    threats: tuple[ThreatModel, ...] = ()
    drawn: Tensor | None = None
    handed_on: dict[int, tuple[float, Tensor]] = field(default_factory=dict)

    @property
    def survives(self) -> Tensor:
        """Mask (n,) of the images that are classified correctly and survive every attack."""
        return self.broken_by == SURVIVES

    @property
    def survivors(self) -> str:
        """The same mask as a result states it."""
        return as_text(self.survives)

    @property
    def sample(self) -> str | None:
        """Mask of the images drawn at random, as a result states it."""
        return None if self.drawn is None else as_text(self.drawn)

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def forwards(self) -> int:
        """Forward passes for the clean images and all stages."""
        return self.clean_forwards + sum(stage.forwards for stage in self.stages)

    @property
    def gradients(self) -> int:
        """Gradients of all stages."""
        return sum(stage.gradients for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Time for the clean images and all stages."""
        return self.clean_seconds + sum(stage.seconds for stage in self.stages)

    def end_after_sample(self, sampled: int) -> None:
        """Record that the last stage attacked a sample, broke no image of it and stopped."""
        stage = self._update(sampled=sampled)
        missed = unseen_at_most(sampled, stage.entered)
        self.warnings += (
            f"{stage.name} attacked {sampled} of {stage.entered} survivors and broke none; with 95 % confidence it "
            f"would break at most {missed} of all, {100 * missed / self.total:.2f} points",
        )

    def draw(self, some: Some, rng: IndexedNoise) -> Tensor:
        """Mask (n,) of the images drawn among those that survive now, or earlier if they were already drawn."""
        if self.drawn is None:
            survives = self.survives
            self.drawn = sampled(survives, some.of(int(survives.sum())), rng) & survives
        return self.drawn

    def nearest(self, some: Some) -> Tensor:
        """Mask (n,) of the survivors with the largest margins."""
        survives = self.survives
        order = torch.where(survives, self.margins, -torch.inf).argsort(descending=True, stable=True)
        return torch.zeros_like(survives).index_fill(0, order[: some.of(int(survives.sum()))], True)

    def starts(self, x: Tensor, numbers: Tensor) -> Tensor:
        """Return the points handed on for some images (m, c, h, w), or the clean image where there is none."""
        points = x.clone()
        for row, number in enumerate(numbers.tolist()):
            if number in self.handed_on:
                points[row] = self.handed_on[number][1].to(x.device)
        return points

    def leave_out(self, attacked: Tensor) -> None:
        """Leave images that broke out of the sample, if they were attacked whether drawn or not.

        The sample then stands for the images that survive this attack, too.
        """
        if self.drawn is not None:
            self.drawn = self.drawn & ~(attacked & ~self.survives)

    def add(self, outcome: AttackOutcome, rows: Mapping[int, int]) -> None:
        """Add an outcome of the last stage; `rows` maps image numbers to rows."""
        row = torch.tensor([rows[number] for number in outcome.numbers.tolist()], dtype=torch.int64)
        broken = row[outcome.is_broken]
        self.broken_by[broken] = len(self.stages) - 1
        self.predictions[broken] = outcome.predictions[outcome.is_broken]
        self.sizes[broken] = outcome.sizes[outcome.is_broken]
        self.margins[row] = torch.maximum(self.margins[row], outcome.margins)
        if outcome.points is not None:
            self.points.update(zip(outcome.numbers[outcome.is_broken].tolist(), outcome.points, strict=True))
        if outcome.tried is not None:
            for number, margin, point in zip(
                outcome.numbers.tolist(), outcome.margins.tolist(), outcome.tried, strict=True
            ):
                if number not in self.handed_on or margin > self.handed_on[number][0]:
                    self.handed_on[number] = margin, point
        stage = self.stages[-1]
        self._update(
            broken=stage.broken + len(broken),
            forwards=stage.forwards + outcome.forwards,
            gradients=stage.gradients + outcome.gradients,
            seconds=stage.seconds + outcome.seconds,
        )
        self.warnings = tuple(dict.fromkeys((*self.warnings, *outcome.warnings)))

    def _update(self, **changed: Any) -> StageResult:
        """Change values of the last stage, and return it."""
        self.stages[-1] = self.stages[-1].model_copy(update=changed)
        return self.stages[-1]


def as_text(mask: Tensor) -> str:
    """Encode a mask as text, one character per image."""
    return "".join("1" if is_set else "0" for is_set in mask.tolist())


def sampled(survives: Tensor, size: int | None, rng: IndexedNoise) -> Tensor:
    """Mask (n,) of the images to attack first: a random choice among the survivors, or all if there are few."""
    if size is None or int(survives.sum()) <= size:
        return torch.ones_like(survives)
    luck = rng.split("sample").uniform(torch.empty((len(survives), 1), device=rng.index.device))[:, 0].cpu()
    chosen = torch.where(survives, luck, torch.inf).argsort()[:size]
    return torch.zeros_like(survives).index_fill(0, chosen, True)
