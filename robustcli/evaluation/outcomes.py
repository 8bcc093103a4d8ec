"""Strikes: what single calls of attacks came to, and the journal that keeps them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Strike:
    """What one call of an attack came to.

    Args:
        stage: name of the stage.
        numbers: (m,) of the images attacked, in the data set.
        is_broken: (m,) bool.
        predictions: (m,) class of the point that the attack returned.
        margins: (m,) largest wrong logit minus the true one there; positive when broken.
        sizes: (m,) distance from the clean image, in the norm of the threat.
        points: (b, c, h, w) adversarial images of those that are broken, in the same order.
        forwards, gradients: examples passed forward, and examples that a gradient came back for.
        seconds: wall-clock time.
        warnings: what the attack warned of.
    """

    stage: str
    numbers: Tensor
    is_broken: Tensor
    predictions: Tensor
    margins: Tensor
    sizes: Tensor
    points: Tensor
    forwards: int
    gradients: int
    seconds: float
    warnings: tuple[str, ...] = ()

    def among(self, rows: Collection[int]) -> "Strike":
        """What is known of some images; the counts stay those of the whole call."""
        is_in = torch.tensor([number in rows for number in self.numbers.tolist()], dtype=torch.bool)
        if bool(is_in.all()):
            return self
        return replace(
            self,
            numbers=self.numbers[is_in],
            is_broken=self.is_broken[is_in],
            predictions=self.predictions[is_in],
            margins=self.margins[is_in],
            sizes=self.sizes[is_in],
            points=self.points[is_in[self.is_broken]],
        )


class Journal(Protocol):
    """Keeps strikes, so that a later process need not repeat them."""

    def strikes(self, stage: str) -> Iterable[Strike]:
        """Those kept so far."""
        ...

    def keep(self, strike: Strike) -> None:
        """Keep one more; when this returns, it is kept for good."""
        ...


class Forgetful:
    """Keeps nothing."""

    def strikes(self, stage: str) -> Iterable[Strike]:
        return ()

    def keep(self, strike: Strike) -> None:
        pass
