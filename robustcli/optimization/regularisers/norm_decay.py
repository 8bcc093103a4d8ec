"""Norm decay: the induced norm of every convolution and linear layer is made smaller."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcli.architectures.induced_norms import taps_of_norm
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularisers import REGULARISERS, RunningRegulariser
from robustcli.optimization.regularisers.layers import sizes_seen, trained_layers
from robustcli.registry.types import NonNegative, ProperShare


@REGULARISERS.register("norm_decay", reads="the layers", smoke={"weight": 0.01}, passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class NormDecay:
    """weight * sum over the layers of their norm: a subgradient is sign(w) on the weights that the norm sums.

    The norm of a layer is that of the matrix it is, exact at the sizes of its inputs with zero padding,
    stride, dilation and groups; the released code knows neither groups nor dilation and takes every kernel
    to lie inside its image at least once. Which weights are summed jumps from update to update, so a memory
    smooths the direction: b <- memory * b, then b = sign(w) on those weights, and the gradient is weight * b.
    The logged `penalty` is weight * <b, w>, which without memory is weight * the sum of the norms. Batch norms
    and biases are not decayed; a layer that is used at several sizes has the largest of its norms.

    Args:
        weight: beta, of the norms; the authors try 1e-5 to 0.1, their code has 1e-3. 0 is none.
        norm: "linf", the largest sum of magnitudes of a row, or "l1", of a column.
        memory: share of the past direction; 0.5 as released, 0 is the subgradient itself.

    Reference: Liang and Huang, "Large Norms of CNN Layers Do Not Hurt Adversarial Robustness", AAAI 2021,
        arXiv 2009.08435; its message is that smaller norms do not make networks robust.
    """

    weight: NonNegative = 1e-3
    norm: Literal["l1", "linf"] = "linf"
    memory: ProperShare = 0.5

    def start(self, model: nn.Module) -> "RunningNormDecay":
        return RunningNormDecay(self, model)


class RunningNormDecay(RunningRegulariser):
    """A NormDecay with its directions.

    Args:
        sizes: of the inputs of each layer, looked up at the first update.
        directions: b of each layer.
    """

    def __init__(self, settings: NormDecay, model: nn.Module) -> None:
        self.settings = settings
        self.layers = trained_layers(model)
        self.sizes: dict[str, list[tuple[int, ...]]] | None = None
        self.directions: dict[str, Tensor] = {}

    def penalty(self, model: nn.Module, x: Tensor, y: Tensor, progress: Progress) -> Tensor | None:
        if not self.settings.weight:
            return None
        if self.sizes is None:
            self.sizes = sizes_seen(model, self.layers, x)
        total = torch.zeros((), device=x.device)
        for name, sizes in self.sizes.items():
            weight = self.layers[name].weight
            assert isinstance(weight, Tensor)
            direction = self._directed(name, weight, sizes)
            total = total + (direction * weight).sum()
        return self.settings.weight * total

    def _directed(self, name: str, weight: Tensor, sizes: list[tuple[int, ...]]) -> Tensor:
        """b of a layer, brought up to date."""
        norm, taps = taps_of_norm(self.layers[name], sizes[0], self.settings.norm)
        for size in sizes[1:]:
            other, others = taps_of_norm(self.layers[name], size, self.settings.norm)
            taps = torch.where(other > norm, others, taps)
            norm = torch.maximum(norm, other)
        past = self.directions.get(name)
        kept = torch.zeros_like(weight) if past is None else self.settings.memory * past
        self.directions[name] = torch.where(taps, weight.detach().sign(), kept)
        return self.directions[name]

    def state_dict(self) -> dict[str, Any]:
        return {"directions": self.directions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.directions = {
            name: direction.to(next(self.layers[name].parameters()).device)
            for name, direction in state["directions"].items()
        }
