"""Which images of a batch an attack still moves, and whether those that it is done with are computed along."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_leaving = True


@contextmanager
def computed_along() -> Iterator[None]:
    """Inside nobody leaves a batch, so that an update costs the most it can: for counts and forecasts.

    How soon images are done depends on the network, and an untrained one says nothing of how it will be.
    """
    global _leaving
    before, _leaving = _leaving, False
    try:
        yield
    finally:
        _leaving = before


class Moving:
    """The images of a batch that are still moved; one that has stopped never moves again.

    Images that have stopped leave the batch where that changes nothing for the others and costs nothing: on a CPU,
    with the whole model in eval mode. In train mode, or with batch norms that normalise by the batch, what remains
    would be normalised by itself alone. On a GPU every step would have to wait until the device knows who is left,
    and cuDNN and compiled programs would meet a new size of batch in every step. There they are computed along.

    Args:
        rows: (m,) indices of the images that are computed, in their order.
        taken: (n,) steps that every image took.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.rows = torch.arange(len(x), device=x.device)
        self.taken = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        self._moves = torch.ones_like(self.rows, dtype=torch.bool)
        is_alone = not any(module.training for module in model.modules())
        self._leave = _leaving and is_alone and x.device.type == "cpu"

    def stop(self, done: Tensor) -> None:
        """These (m,) of the computed images stay where they are from now on."""
        self._moves = self._moves & ~done

    def step(self, x_adv: Tensor, moved: Tensor) -> bool:
        """Take the points `moved` (m, ...) over into all points x_adv (n, ...); whether there is anybody left."""
        moves = self._moves.view(-1, *[1] * (x_adv.dim() - 1))
        x_adv[self.rows] = torch.where(moves, moved, x_adv[self.rows])
        self.taken[self.rows] += self._moves
        if self._leave:
            self.rows, self._moves = self.rows[self._moves], self._moves[self._moves]
        return len(self.rows) > 0
