"""Accuracy on corrupted images."""

from collections import defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.data.corruption_kinds import KINDS, corrupted
from robustcli.errors import RobustCliError, suggest
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage
from robustcli.registry.types import Count
from robustcli.threat.noise import IndexedNoise, Noise, derive
from robustcli.threat.threat import ThreatModel

# Corruptions change pixels by any amount.
_WHOLE_BOX = ThreatModel("linf", Fraction(1))
_MOST_SEVERE = 5


@EVALUATORS.register(
    "corruptions",
    passes=(2, 0, 0),
    without_threat=True,
    smoke={"kinds": ("gaussian_noise", "contrast"), "severities": (1, 2)},
)
@dataclass(frozen=True, kw_only=True)
class Corruptions(Evaluator):
    """Accuracy on images with noise, blur, weather and digital artifacts, made as for CIFAR-10-C.

    Nothing is searched: a corruption is drawn for each image by its number and the seed. An image counts as correct
    only if it is classified correctly with and without the corruption, as with every other evaluator, so the number
    may lie slightly below the mean corruption accuracy of `robust diagnose --with corruptions`, which looks at the
    corrupted image only. Images are corrupted here; for the published files use the data sets cifar10_c, cifar100_c and
    imagenet_c. Frost, which needs photographs, is left out.

    When to use: for the robustness that deployed models need, next to attacks; inside worst_case to ask for both.

    First setting: the defaults on all test images.

    Args:
        kinds: corruptions that are drawn from.
        severities: from 1 (mild) to 5.
        each: "drawn": one kind and severity for each image. "all": an image must survive every kind and severity.
        batch_size: images corrupted and classified at once; changes memory and speed, not the number.

    Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019.
    """

    kinds: tuple[str, ...] = (
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "snow",
        "fog",
        "brightness",
        "contrast",
        "elastic_transform",
        "pixelate",
        "jpeg_compression",
    )
    severities: tuple[Count, ...] = (1, 2, 3, 4, 5)
    each: Literal["drawn", "all"] = "drawn"
    batch_size: Count = 250

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise RobustCliError(f"evaluator corruptions: kinds: there is no '{kind}'{suggest(kind, KINDS)}")
        if not self.kinds or not self.severities or max(self.severities) > _MOST_SEVERE:
            raise RobustCliError(
                "evaluator corruptions: expected one kind or more, and severities from 1 to "
                f"{_MOST_SEVERE}; found kinds {list(self.kinds)} and severities {list(self.severities)}"
            )

    def stages(self, context: AttackContext) -> list[Stage]:
        cells = tuple(product(dict.fromkeys(self.kinds), sorted(set(self.severities))))
        if self.each == "drawn":
            return [self._stage("corruption", cells)]
        return [self._stage(f"{kind} {severity}", ((kind, severity),)) for kind, severity in cells]

    def _stage(self, name: str, cells: tuple[tuple[str, int], ...]) -> Stage:
        stage = Stage.of(Corruption(cells), self.batch_size)
        return replace(stage, name=name, threat=_WHOLE_BOX)


@dataclass(frozen=True)
class Corruption(Attack):
    """One kind and severity for each image, drawn from several.

    Args:
        cells: kinds with their severities.
    """

    cells: tuple[tuple[str, int], ...]
    is_black_box: bool = True
    is_search: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        assert isinstance(rng, IndexedNoise)
        pixels, numbers = x.double().cpu().numpy(), rng.index.tolist()
        rows: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row, number in enumerate(numbers):
            # By the image's number, so that batches and the choice of other images change nothing.
            drawn = np.random.default_rng(derive(rng.seed, "corruption", number)).integers(len(self.cells))
            rows[self.cells[drawn]].append(row)
        found = np.empty_like(pixels)
        for (kind, severity), chosen in rows.items():
            seeds = [derive(rng.seed, "corruption", kind, severity, numbers[row]) for row in chosen]
            found[chosen] = corrupted(pixels[chosen], kind, severity, [np.random.default_rng(seed) for seed in seeds])
        return torch.from_numpy(found).to(x)
