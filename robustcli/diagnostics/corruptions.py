"""Accuracy on corrupted images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.data.corruption_kinds import KINDS, corrupted
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import logits_of
from robustcli.errors import RobustCliError, suggest
from robustcli.evaluators import chunks
from robustcli.registry.types import Count
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("corruptions", smoke={"kinds": ("gaussian_noise", "contrast"), "severities": (1, 2)})
@dataclass(frozen=True, kw_only=True)
class Corruptions:
    """Clean accuracy on images with noise, blur, weather and digital artefacts, in the style of CIFAR-10-C.

    Corruptions are computed here, for images of any size, with the constants of CIFAR-10-C. Do not compare the results
    with published ones: the published files were drawn without a seed and cannot be reproduced. Frost, which needs
    photographs, is left out, so the mean is over 14 kinds instead of 15. The extra kinds speckle_noise, gaussian_blur
    and saturate count in the mean if you list them. Motion blur and snow do not use ImageMagick; glass blur swaps
    pixels, zoom blur keeps the centre fixed, and fog and elastic displacements scale with the image size.

    Args:
        kinds: names of the corruptions, in the order of the results.
        severities: from 1 (mild) to 5, in any order.
        batch_size: images per corruption and forward; changes only memory and speed.

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
    batch_size: Count = 250

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise RobustCliError(f"corruptions.kinds: there is no '{kind}'{suggest(kind, KINDS)}")
        if not self.kinds or not self.severities or max(self.severities) > 5:
            raise RobustCliError("corruptions: expected one kind or more, and severities from 1 to 5")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        cells = {(kind, severity): self._accuracy(model, x, y, rng, kind, severity) for kind, severity in self._cells()}
        rows = []
        for kind in dict.fromkeys(self.kinds):
            own = {severity: cells[kind, severity] for severity in sorted(set(self.severities))}
            named = {f"severity_{severity}_accuracy": accuracy for severity, accuracy in own.items()}
            rows.append({"kind": kind, **named, "mean_accuracy": sum(own.values()) / len(own)})
        return {"mean_accuracy": sum(cells.values()) / len(cells), "rows": rows}

    def _cells(self) -> list[tuple[str, int]]:
        return [(kind, severity) for kind in dict.fromkeys(self.kinds) for severity in sorted(set(self.severities))]

    def _accuracy(self, model: nn.Module, x: Tensor, y: Tensor, rng: IndexedNoise, kind: str, severity: int) -> float:
        correct = 0
        numbers = rng.index.tolist()
        for part in chunks(len(x), self.batch_size):
            # Seeded by the image's index, so that results do not depend on batches or on the other images.
            seeds = [derive(rng.seed, "corruption", kind, severity, number) for number in numbers[part]]
            pixels = x[part].double().cpu().numpy()
            changed = corrupted(pixels, kind, severity, [np.random.default_rng(seed) for seed in seeds])
            images = torch.from_numpy(changed).to(x)
            correct += int((logits_of(model, images, self.batch_size).argmax(1) == y[part]).sum())
        return correct / len(x)
