"""Clean accuracy that could come from guessing, and what may be the cause."""

from collections.abc import Iterator

from torch import Tensor

from robustcli.data.images import AnyImages, chunks_of

# Probability, under guessing, below which an accuracy counts as better than guessing.
_LEVEL = 1e-3
# Images brighter than this are not "nearly black".
_DARK = 0.1
# Share of the images on which predictions and labels must differ by one number for it to be named.
_SHIFT_SHARE = 0.5


def is_at_chance(right: int, total: int, classes: int) -> bool:
    """Whether an accuracy cannot be told from guessing.

    An exact one-sided binomial test against 1 / classes at level 0.001. Of a few images even all correct ones pass
    that test, so an accuracy more than half-way from chance to 1 is never called chance.
    """
    # Here, not above: commands that evaluate nothing should not wait for scipy.
    from scipy.special import bdtrc

    chance = 1 / classes
    return right / total <= (1 + chance) / 2 and float(bdtrc(right - 1, total, chance)) >= _LEVEL


def chance_suspicions(predictions: Tensor, labels: Tensor, classes: int, x: AnyImages) -> Iterator[str]:
    """Suspicions about clean images: they are nearly black, or the accuracy on them is at chance, with likely causes.

    Args:
        predictions, labels: (n,) of the clean images, on the CPU.
        classes: logits of the network.
        x: the clean images.
    """
    brightest = 0.0
    for part in chunks_of(x):
        brightest = max(brightest, float(part.max()))
        if brightest >= _DARK:
            break
    if brightest < _DARK:
        yield (
            f"the brightest pixel is {brightest:.3g} of 1, nearly black: were pixels in [0, 1], or a few levels, saved "
            "as uint8?"
        )
    right, total = int((predictions == labels).sum()), len(labels)
    if is_at_chance(right, total, classes):
        yield (
            f"clean accuracy is {right} of {total}, no better than guessing among {classes} classes, so robustness "
            f"cannot be measured; {'; '.join(_causes(predictions, labels, classes))}"
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
        "likely causes: another normalisation (--mean, --std) or pixel range, labels in another order, or weights "
        "that do not belong to this network"
    )
