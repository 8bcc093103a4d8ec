"""Per-image results of an evaluation as CSV, and its adversarial examples.

With both, the weights and the images, a robust accuracy can be verified without an attack; see
workflows/verify_evaluation.py.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, cast
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.data.images import AnyImages
from robustcli.errors import RobustCliError
from robustcli.evaluation.confirm import predict
from robustcli.evaluation.evidence import SURVIVES, WRONG_WHEN_CLEAN, Evidence
from robustcli.store.arrays import UNREADABLE
from robustcli.store.files import replacing, write_text
from robustcli.store.large_arrays import GrowingArray, read_rows, write_npz
from robustcli.threat.threat import ThreatModel

# Encodings of an adversarial example, the smallest first: steps of 1/255 from the clean image, a half-precision
# perturbation, or the image itself.
Encoding = Literal["steps", "halves", "floats"]
_ENCODINGS: tuple[Encoding, ...] = ("steps", "halves", "floats")
_BATCH, _READ = 250, 500


@dataclass(frozen=True)
class ImageResult:
    """Outcome for one image.

    Args:
        image: number in the order of the data.
        label: true class.
        clean: predicted class of the clean image.
        broken_by: name of the stage that broke it, "clean" if it is misclassified without attack, "" if it survives.
        prediction: predicted class of the adversarial image.
        margin: largest margin seen, wrong logit minus true one.
        size: norm of the perturbation that broke it, in the norm of the threat model.
    """

    image: int
    label: int
    clean: int
    broken_by: str
    prediction: int
    margin: float
    size: float


_TYPES: dict[str, Callable[[str], Any]] = {item.name: cast("type", item.type) for item in fields(ImageResult)}
COLUMNS = tuple(_TYPES)


def per_image_results(evidence: Evidence) -> list[ImageResult]:
    """Return the outcome for every image, in order."""
    names = {SURVIVES: "", WRONG_WHEN_CLEAN: "clean", **{i: stage.name for i, stage in enumerate(evidence.stages)}}
    columns = (
        evidence.numbers,
        evidence.labels,
        evidence.clean,
        evidence.broken_by,
        evidence.predictions,
        evidence.margins,
        evidence.sizes,
    )
    return [
        ImageResult(image, label, clean, names[broken_by], prediction, margin, size)
        for image, label, clean, broken_by, prediction, margin, size in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def write_per_image(path: Path, lines: list[ImageResult]) -> None:
    """Write per-image results as CSV."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        # Nine digits distinguish all numbers of single precision.
        writer.writerow(f"{value:.9g}" if isinstance(value, float) else value for value in astuple(line))
    write_text(path, text.getvalue())


def read_per_image(path: Path) -> list[ImageResult]:
    """Read per-image results.

    Raises:
        RobustCliError: the file is missing, damaged or not of this kind; the message has file and line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise RobustCliError(f"{path}: cannot be read: {error}") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise RobustCliError(f"{path}: not per-image results: expected the first line {','.join(COLUMNS)}")
    lines = []
    for number, row in enumerate(rows[1:], 2):
        try:
            lines.append(ImageResult(*(kind(text) for kind, text in zip(_TYPES.values(), row, strict=True))))
        except ValueError as error:
            raise RobustCliError(f"{path}: line {number}: {error}") from error
    return lines


def write_adversarial_examples(
    path: Path, evidence: Evidence, model: nn.Module, x: AnyImages, y: Tensor, votes: int = 1
) -> None:
    """Write every adversarial image in the smallest encoding that still lies in the threat set and fools the model.

    Args:
        x, y: all images that were evaluated, and their labels, on the model's device.
        votes: forward passes that vote on the class of an image.
    """
    row_of = {number: row for row, number in enumerate(evidence.numbers.tolist())}
    chosen: dict[Encoding, list[int]] = {encoding: [] for encoding in _ENCODINGS}
    with ExitStack() as stack:
        empty = (GrowingArray(path.parent, tuple(x.shape[1:]), np.float32) for _ in _ENCODINGS)
        kept = {name: stack.enter_context(array) for name, array in zip(_ENCODINGS, empty, strict=True)}
        for left, threat in _in_batches(evidence, row_of):
            for encoding in _ENCODINGS:
                if not left:
                    break
                rows = torch.tensor([row_of[number] for number in left], device=x.device)
                clean, found = x[rows], torch.stack([evidence.points[number] for number in left])
                codes = _encoded(encoding, found, clean.cpu(), threat)
                points = decoded(encoding, codes, clean)
                is_good = threat.contains(points, clean)
                is_good &= predict(model, points, y[rows], votes).predictions != y[rows]
                # The image itself was confirmed when it was found.
                is_kept = is_good.cpu().numpy() | (encoding == "floats")
                chosen[encoding] += [number for number, keep in zip(left, is_kept, strict=True) if keep]
                kept[encoding].append(codes[is_kept])
                left = [number for number, keep in zip(left, is_kept, strict=True) if not keep]
        arrays: dict[str, NDArray[Any] | GrowingArray] = {}
        for encoding in _ENCODINGS:
            arrays[f"{encoding}_images"] = np.array(chosen[encoding], dtype=np.int64)
            arrays[encoding] = kept[encoding]
        with replacing(path) as file:
            write_npz(file, arrays)


def _in_batches(evidence: Evidence, row_of: Mapping[int, int]) -> Iterator[tuple[list[int], ThreatModel]]:
    """Yield numbers of the broken images in batches, with their threat model."""
    threats: dict[int, ThreatModel] = {
        number: evidence.threats[int(evidence.broken_by[row_of[number]])] for number in sorted(evidence.points)
    }
    for threat in dict.fromkeys(evidence.threats):
        numbers = [number for number, own in threats.items() if own == threat]
        for start in range(0, len(numbers), _BATCH):
            yield numbers[start : start + _BATCH], threat


def read_adversarial_examples(path: Path) -> Iterator[tuple[Encoding, NDArray[Any], NDArray[Any]]]:
    """Yield encoding, image numbers and codes, a batch at a time, for every encoding in the file.

    Raises:
        RobustCliError: the file is missing, damaged or not of this kind.
    """
    try:
        with ZipFile(path) as archive:
            for encoding in _ENCODINGS:
                images = [*read_rows(archive, f"{encoding}_images", _READ)]
                for numbers, codes in zip_longest(images, read_rows(archive, encoding, _READ)):
                    if numbers is None or codes is None or len(numbers) != len(codes):
                        raise ValueError(f"{encoding} and {encoding}_images have different lengths")
                    yield encoding, numbers, codes
    except UNREADABLE as error:
        raise RobustCliError(f"{path}: not a file of adversarial examples: {error}") from error


def decoded(encoding: Encoding, codes: NDArray[Any], x: Tensor) -> Tensor:
    """Decode adversarial images (n, c, h, w), on the device of the clean images `x`."""
    values = torch.from_numpy(codes).to(x.device)
    if encoding == "steps":
        return (((255 * x).round() + values) / 255).clamp(0, 1)
    if encoding == "halves":
        return (x + values.float()).clamp(0, 1)
    return values.float()


def _encoded(encoding: Encoding, points: Tensor, x: Tensor, threat: ThreatModel) -> NDArray[Any]:
    delta: NDArray[Any] = (points - x).numpy()
    if encoding == "floats":
        return np.asarray(points)
    if encoding == "halves":
        halves = delta.astype(np.float16)
        # Towards zero, because rounding to nearest may leave the ball.
        is_longer = np.abs(halves.astype(np.float32)) > np.abs(delta)
        shorter: NDArray[Any] = np.where(is_longer, np.nextafter(halves, np.float16(0)), halves)
        return shorter
    nearest = np.rint(255 * delta).astype(np.int16)
    is_inside = threat.contains(decoded("steps", nearest, x), x).numpy()
    steps: NDArray[Any] = np.where(is_inside[:, None, None, None], nearest, np.trunc(255 * delta).astype(np.int16))
    return steps
