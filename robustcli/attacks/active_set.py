"""The images of a batch that an attack still moves."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from robustcli.attacks.gradient import Rows

_early_exit = ContextVar("early_exit", default=True)


@contextmanager
def no_early_exit() -> Iterator[None]:
    """Keep images that have stopped in the batch, so that an update costs the most it can: for counts and plans.

    How soon images stop depends on the network, and an untrained one does not show how soon it will be.
    """
    token = _early_exit.set(False)
    try:
        yield
    finally:
        _early_exit.reset(token)


class ActiveSet:
    """The images of a batch that are still moved; one that has stopped never moves again.

    Args:
        x: the batch.
        rows: the images to begin with; None is all.
        leaves: whether images that stop leave the batch. Otherwise they are computed along and stay where they are.

    Attributes:
        rows: the images in the batch, in their order.
        steps: (n,) moves that every image made.
    """

    def __init__(self, x: Tensor, rows: Rows | None = None, *, leaves: bool = True) -> None:
        self.rows: Rows = slice(None) if rows is None else rows
        self.steps = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        self._leaves = leaves
        self._moves = torch.ones_like(self.steps[self.rows], dtype=torch.bool)

    @classmethod
    def where_free(cls, model: nn.Module, x: Tensor) -> "ActiveSet":
        """Images leave only where that changes nothing for the others and costs nothing.

        That is on a CPU, with the whole model in eval mode. In train mode, or with batch norms that normalise by the
        batch, the remaining images would be normalised by themselves. On a GPU every step would have to wait until
        the device knows which images remain, and cuDNN and compiled programs would meet a new batch size in every
        step.
        """
        is_independent = not any(module.training for module in model.modules())
        return cls(x, leaves=_early_exit.get() and is_independent and x.device.type == "cpu")

    @property
    def is_empty(self) -> bool:
        """Whether every image has left."""
        return len(self._moves) == 0

    def stop(self, is_done: Tensor) -> Tensor | None:
        """Stop some of the images in the batch.

        Args:
            is_done: (m,) mask.

        Returns:
            Indices of the images that remain in the batch, counted in the batch before; None where all remain.
        """
        self._moves = self._moves & ~is_done
        if not self._leaves:
            return None
        stays = self._moves.nonzero().flatten()
        if len(stays) == len(self._moves):
            return None
        self.rows = stays if isinstance(self.rows, slice) else self.rows[stays]
        self._moves = self._moves[stays]
        return stays

    def write(self, points: Tensor, moved: Tensor) -> None:
        """Write moved points (m, ...) of the images in the batch into the points (n, ...) of all."""
        if not self._leaves:
            moves = self._moves.view(-1, *[1] * (points.dim() - 1))
            moved = torch.where(moves, moved, points[self.rows])
        points[self.rows] = moved
        self.steps[self.rows] += self._moves
