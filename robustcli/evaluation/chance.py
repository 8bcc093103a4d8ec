"""Detect a clean accuracy at chance level, and its likely causes."""

from collections.abc import Iterator

from torch import Tensor

from robustcli.data.images import AnyImages, chunks_of
from robustcli.statistics import is_at_chance

# Maximum brightness of images that count as nearly black.
_DARK = 0.1
# Minimum share of images on which predictions and labels differ by the same number.
_SHIFT_SHARE = 0.5


def chance_suspicions(predictions: Tensor, labels: Tensor, classes: int, x: AnyImages) -> Iterator[str]:
    """Yield suspicions about clean images: they are nearly black, or accuracy is at chance level, with likely causes.

    Args:
        predictions, labels: (n,) for the clean images, on the CPU.
        classes: number of logits of the network.
        x: the clean images.
    """
    brightest = 0.0
    for part in chunks_of(x):
        brightest = max(brightest, float(part.max()))
        if brightest >= _DARK:
            break
    if brightest < _DARK:
        yield (
            f"the brightest pixel is {brightest:.3g} of 1, so images are nearly black: were pixels in [0, 1], or with "
            "few levels, saved as uint8?"
        )
    right, total = int((predictions == labels).sum()), len(labels)
    if is_at_chance(right, total, classes):
        yield (
            f"clean accuracy is {right} of {total}, not clearly better than guessing among {classes} classes, so "
            f"robustness cannot be measured; {'; '.join(_causes(predictions, labels, classes))}"
        )


def _causes(predictions: Tensor, labels: Tensor, classes: int) -> Iterator[str]:
    shifts = ((predictions - labels) % classes).bincount(minlength=classes)
    shift = int(shifts[1:].argmax()) + 1
    if int(shifts[shift]) > _SHIFT_SHARE * len(labels) and len(set(predictions.tolist())) > 1:
        signed = shift if shift <= classes // 2 else shift - classes
        yield f"on {int(shifts[shift])} images the prediction is the label {signed:+d}: are the labels shifted?"
    if len(set(predictions.tolist())) == 1 < len(set(labels.tolist())):
        yield f"every image is put into class {int(predictions[0])}"
    yield (
        "likely causes: training that failed or was too short, another normalization (--mean, --std) or pixel range, "
        "labels in another order, or weights that do not belong to this network"
    )
