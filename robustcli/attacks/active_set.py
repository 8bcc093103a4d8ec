"""The images of a batch that an attack has not stopped yet."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from robustcli.attacks.gradient import Rows
from robustcli.threat.threat import per_example

_early_exit = ContextVar("early_exit", default=True)


@contextmanager
def no_early_exit() -> Iterator[None]:
    """Keep stopped images in the batch, so that cost is at its maximum: for pass counts and plans.

    How soon images stop depends on the network, and an untrained network does not show it.
    """
    token = _early_exit.set(False)
    try:
        yield
    finally:
        _early_exit.reset(token)


def early_exit() -> bool:
    """Return False within `no_early_exit`."""
    return _early_exit.get()


class ActiveSet:
    """The images of a batch that have not stopped; a stopped image never moves again.

    Args:
        x: the batch.
        rows: images to start with; None means all.
        leaves: whether stopped images leave the batch. Otherwise they stay in it without moving.

    Attributes:
        rows: indices of the images in the batch, in order.
        steps: (n,) number of moves of each image.
    """

    def __init__(self, x: Tensor, rows: Rows | None = None, *, leaves: bool = True) -> None:
        self.rows: Rows = slice(None) if rows is None else rows
        self.steps = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        self._leaves = leaves
        self._moves = torch.ones_like(self.steps[self.rows], dtype=torch.bool)

    @classmethod
    def where_free(cls, model: nn.Module, x: Tensor) -> "ActiveSet":
        """Let images leave only where this costs nothing and does not change the other images.

        This is on a CPU with the whole model in eval mode. In train mode, or with batch statistics, the remaining
        images would be normalized differently. On a GPU, every step would wait for the device, and cuDNN and compiled
        programs would get a new batch size in every step.
        """
        is_independent = not any(module.training for module in model.modules())
        return cls(x, leaves=early_exit() and is_independent and x.device.type == "cpu")

    @property
    def is_empty(self) -> bool:
        """Whether all images have left."""
        return len(self._moves) == 0

    def stop(self, is_done: Tensor) -> Tensor | None:
        """Stop some of the images in the batch.

        Args:
            is_done: (m,) mask.

        Returns:
            Indices of the remaining images, relative to the batch before the call; None if all remain.
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
        """Write moved points (m, ...) of the active images into the points (n, ...) of all images."""
        if not self._leaves:
            moved = torch.where(per_example(self._moves, points), moved, points[self.rows])
        points[self.rows] = moved
        self.steps[self.rows] += self._moves
