"""Accuracy on corrupted images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.data.corruption_kinds import KINDS, corrupted
from robustcli.data.datasets.corruptions import BENCHMARK
from robustcli.diagnostics import DIAGNOSTICS
from robustcli.diagnostics.measuring import logits_of
from robustcli.errors import RobustCliError, suggest
from robustcli.evaluators import chunks
from robustcli.registry.types import BatchSize, Count
from robustcli.threat.noise import IndexedNoise, derive
from robustcli.threat.threat import ThreatModel


@DIAGNOSTICS.register("corruptions", smoke={"kinds": ("gaussian_noise", "contrast"), "severities": (1, 2)})
@dataclass(frozen=True, kw_only=True)
class Corruptions:
    """Clean accuracy on images with noise, blur, weather and digital artifacts, in the style of CIFAR-10-C.

    Corruptions are computed here, for images of any size, with the constants of CIFAR-10-C. Do not compare the results
    with published ones: the published files were drawn without a seed and cannot be reproduced. Frost, which needs
    photographs, is left out, so the mean is over 14 kinds instead of 15. The extra kinds speckle_noise, gaussian_blur
    and saturate count in the mean if you list them. Motion blur and snow do not use ImageMagick; glass blur swaps
    pixels, zoom blur keeps the center fixed, and fog and elastic displacements scale with the image size.

    Args:
        kinds: names of the corruptions, in the order of the results; empty: those of CIFAR-10-C, without frost.
        severities: from 1 (mild) to 5, in any order.

    Reference: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019.
    """

    kinds: tuple[str, ...] = ()
    severities: tuple[Count, ...] = (1, 2, 3, 4, 5)
    batch_size: BatchSize = 250

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise RobustCliError(f"corruptions.kinds: there is no '{kind}'{suggest(kind, KINDS)}")
        if not self.severities or max(self.severities) > 5:
            raise RobustCliError("corruptions.severities: expected one or more, from 1 to 5")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: IndexedNoise
    ) -> dict[str, Any]:
        rows, all_accuracies = [], []
        for kind in dict.fromkeys(self.kinds or [kind for kind in BENCHMARK if kind in KINDS]):
            severities = sorted(set(self.severities))
            accuracies = [self._accuracy(model, x, y, rng, kind, severity) for severity in severities]
            named = {f"severity_{severity}_accuracy": one for severity, one in zip(severities, accuracies, strict=True)}
            rows.append({"kind": kind, **named, "mean_accuracy": sum(accuracies) / len(accuracies)})
            all_accuracies += accuracies
        return {"mean_accuracy": sum(all_accuracies) / len(all_accuracies), "rows": rows}

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
