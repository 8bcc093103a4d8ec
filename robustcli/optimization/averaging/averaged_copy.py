"""A copy of the network whose weights are an average, with its batch statistics."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcli.architectures.running_statistics import RunningStatistics
from robustcli.optimization.averaging import CleanImages

Buffers = Literal["copy", "average", "re_estimate"]


class AveragedCopy:
    """A copy of the network whose weights follow those of the trained one.

    Args:
        model: the network at the start; it is copied and never changed.
        buffers: batch statistics of the copy. "copy": a copy of those of the trained network. "average": averaged like
            the weights. "re_estimate": recomputed in one pass over clean images; without images as "copy".
    """

    def __init__(self, model: nn.Module, buffers: Buffers) -> None:
        self.network = deepcopy(model).requires_grad_(False).eval()
        self.buffers = buffers

    def move(self, model: nn.Module, share: float) -> None:
        """average += share * (model - average); share 1 copies."""
        own: list[Tensor] = list(self.network.parameters())
        other: list[Tensor] = list(model.parameters())
        if self.buffers == "average":
            own += [b for b in self.network.buffers() if b.is_floating_point()]
            other += [b for b in model.buffers() if b.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(own, [tensor.detach() for tensor in other], share)

    def evaluated(self, model: nn.Module, images: CleanImages) -> nn.Module:
        """Return the copy with the batch statistics for evaluation."""
        if self.buffers == "re_estimate" and self._re_estimate(images):
            return self.network
        with torch.no_grad():
            for own, live in zip(self.network.buffers(), model.buffers(), strict=True):
                if self.buffers != "average" or not own.is_floating_point():
                    own.copy_(live)
        return self.network

    def _re_estimate(self, images: CleanImages) -> bool:
        """Set statistics of batch norms to the mean over batches, by their images; other layers start theirs anew.

        Returns:
            False if there were no images, so that the statistics are not set.
        """
        has_images = False
        for module in self.network.modules():
            if isinstance(module, RunningStatistics):
                module.reset_running_stats()
                module.train()
        norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        hooks = [norm.register_forward_pre_hook(_weigh_by_images()) for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        try:
            with torch.no_grad():
                for x in images():
                    self.network(x)
                    has_images = True
        finally:
            self.network.eval()
            for hook in hooks:
                hook.remove()
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        return has_images

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])


def _weigh_by_images() -> Callable[[Any, tuple[Tensor, ...]], None]:
    """Return a hook that sets the momentum of a batch norm before each batch, so that every image counts the same."""
    images = 0

    def weigh(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        nonlocal images
        images += len(inputs[0])
        norm.momentum = len(inputs[0]) / images

    return weigh
