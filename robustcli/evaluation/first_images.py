"""Detect that the first images of a part do not represent all of them, because they are sorted by class."""

from collections.abc import Iterator

from torch import Tensor

from robustcli.data.splits import Data


def sorted_by_class(data: Data, count: int | None) -> Iterator[str]:
    """Yield a warning if only the first `count` test images are used, and the classes follow one after the other."""
    labels = data.images("test")[1]
    if count is not None and count < len(labels) and _is_sorted(labels):
        classes, of_all = (len(set(part.tolist())) for part in (labels[:count], labels))
        yield (
            f"the test images are sorted by class, so the first {count} do not represent all {len(labels)}: they have "
            f"{classes} of {of_all} classes; shuffle the file, or evaluate all images"
        )


def _is_sorted(labels: Tensor) -> bool:
    """Return whether every class, of two or more, is one row of images, and one of them has several."""
    changes = int((labels[1:] != labels[:-1]).sum())
    return 0 < changes == len(set(labels.tolist())) - 1 < len(labels) - 1
