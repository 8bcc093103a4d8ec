"""Accuracy under adversarial examples that were made elsewhere."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.errors import EvaluationError, RobustCliError
from robustcli.evaluators import EVALUATORS, AttackContext, Evaluator, Stage
from robustcli.registry.types import Count
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

# Beginnings of the warnings about single images; `evaluation.noted_warnings` joins those of all batches.
OUTSIDE = "given examples outside the threat set, which are not counted"
MISSING = "no example is given, so that the clean image is counted"


@EVALUATORS.register("from_file", smoke={"path": "given.npz"})
@dataclass(frozen=True, kw_only=True)
class FromFile(Evaluator):
    """Accuracy under adversarial examples from an .npz file, such as those of another program.

    An example counts only if it lies in the threat set around the clean image; the verdict names those that do not.
    Images without an example are counted as they are when clean. The file holds `x_adv` (n, c, h, w), floats in [0, 1]
    or uint8; `indices` (n,), the number of each image in the test data (default: 0, 1, 2, ...); and `labels` (n,), if
    given, which must be those of the data. `robust show-examples --out` writes such a file.

    When to use: to check the examples of another program or of a person, or to combine them with attacks in worst_case.

    First setting: path: examples.npz.

    Args:
        path: an .npz file with the examples.
        batch_size: images per forward; changes memory and speed, not the number.

    Reference: examples as the evidence of a claim: the adaptive evaluations that RobustBench asks for.
    """

    path: str
    batch_size: Count = 250

    @property
    def files(self) -> tuple[str, ...]:
        """The file with the examples."""
        return (self.path,)

    def stages(self, context: AttackContext) -> list[Stage]:
        given = GivenExamples.read(Path(self.path), context)
        return [Stage(name="from_file", attack=given, noise="from_file", batch_size=self.batch_size)]


@dataclass(frozen=True)
class GivenExamples(Attack):
    """Looks up the example of every image.

    Args:
        path: the file, for messages.
        x_adv: examples (n, c, h, w), floats in [0, 1].
        labels: their true classes, or None.
        rows: row of each image, by its number in the data.
    """

    path: Path
    x_adv: NDArray[np.floating] = field(repr=False)
    labels: NDArray[np.integer] | None = field(repr=False)
    rows: dict[int, int] = field(repr=False)
    is_black_box = True
    is_given = True

    @classmethod
    def read(cls, path: Path, context: AttackContext) -> "GivenExamples":
        """Read and check a file.

        Raises:
            RobustCliError: it cannot be read, or does not hold examples for images of this shape.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in ("x_adv", "labels", "indices") if name in stored}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RobustCliError(f"{path}: cannot be read as an .npz file: {error}") from error
        return cls(path, *_checked(path, arrays, context))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        assert isinstance(rng, IndexedNoise)
        numbers = rng.index.tolist()
        points = x.clone()
        found = [place for place, number in enumerate(numbers) if number in self.rows]
        rows = [self.rows[numbers[place]] for place in found]
        if found:
            self._require_labels(rows, y[found], [numbers[place] for place in found])
            points[found] = torch.from_numpy(self.x_adv[rows]).to(x)
        is_inside = threat.contains(points, x)
        outside = [number for number, is_in in zip(numbers, is_inside.tolist(), strict=True) if not is_in]
        missing = [number for number in numbers if number not in self.rows]
        for text, images in ((OUTSIDE, outside), (MISSING, missing)):
            if images:
                warnings.warn(f"{text}: images {', '.join(map(str, images))}", stacklevel=2)
        return torch.where(is_inside.view(-1, 1, 1, 1), points, x)

    def _require_labels(self, rows: list[int], y: Tensor, numbers: list[int]) -> None:
        if self.labels is None:
            return
        for number, given, label in zip(numbers, self.labels[rows].tolist(), y.tolist(), strict=True):
            if given != label:
                raise EvaluationError(
                    f"{self.path}: image {number} has label {given} in the file and {label} in the data: other images, "
                    "or another order; `indices` holds the number of each image in the test data"
                )


def _checked(
    path: Path, arrays: dict[str, NDArray[np.generic]], context: AttackContext
) -> tuple[NDArray[np.floating], NDArray[np.integer] | None, dict[int, int]]:
    """Examples in [0, 1], labels and row by image number."""
    problems = []
    # One dimension at least, because a single number has no length.
    x_adv = np.atleast_1d(arrays.get("x_adv", np.zeros(0)))
    if x_adv.ndim != 4 or x_adv.shape[1:] != context.shape:
        shape = " x ".join(map(str, context.shape))
        problems.append(f"x_adv: found {_shape(arrays.get('x_adv'))}; expected (n, c, h, w) with images of {shape}")
    elif x_adv.dtype == np.uint8:
        x_adv = x_adv.astype(np.float32) / 255
    elif not np.issubdtype(x_adv.dtype, np.floating):
        problems.append(f"x_adv: found {x_adv.dtype}; expected floats in [0, 1] or uint8")
    elif len(x_adv) and not (np.isfinite(x_adv).all() and x_adv.min() >= 0 and x_adv.max() <= 1):
        problems.append(
            f"x_adv: found values from {x_adv.min():g} to {x_adv.max():g}; expected [0, 1], without a normalization"
        )
    indices = arrays.get("indices", np.arange(len(x_adv)))
    labels = arrays.get("labels")
    for name, numbers in (("indices", indices), ("labels", labels)):
        if numbers is None:
            continue
        if numbers.shape != (len(x_adv),) or not np.issubdtype(numbers.dtype, np.integer):
            problems.append(f"{name}: found {_shape(numbers)} of {numbers.dtype}; expected ({len(x_adv)},) of integers")
    if len(set(indices.flat)) < indices.size:
        problems.append("indices: names an image twice")
    if problems:
        raise RobustCliError("\n  ".join([f"{path}: not adversarial examples of these images:", *problems]))
    rows = {int(number): row for row, number in enumerate(indices.flat)}
    return x_adv, labels, rows  # type: ignore[return-value]


def _shape(array: NDArray[np.generic] | None) -> str:
    return "nothing" if array is None else str(array.shape)
