"""What others published of an architecture, carried by its registration and read without importing it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A robust accuracy in the literature.

    Args:
        autoattack: share of the test images that withstand AutoAttack.
        clean: share that is classified correctly as it is; None where the source does not say.
        settings: of the architecture, as a spec writes them.
        training: the method, by the name it is known by, or "not stated" where the number was read.
        images: what was trained on beside the data set's own, or "none".
        source: the paper.
        counted_by: whose numbers these are.
        data: data set.
        threat: norm and radius.
    """

    autoattack: float
    clean: float | None
    settings: dict[str, Any]
    training: str
    images: str
    source: str
    counted_by: str = "RobustBench"
    data: str = "CIFAR-10"
    threat: str = "linf 8/255"
