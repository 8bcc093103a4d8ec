"""Norm decay: a penalty on the induced norm of every convolution and linear layer."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustcli.architectures.induced_norms import taps_of_norm
from robustcli.optimization.progress import Progress
from robustcli.optimization.regularizers import REGULARIZERS, RunningRegularizer
from robustcli.optimization.regularizers.layers import sizes_seen, trained_layers
from robustcli.registry.types import NonNegative, ProperShare


@REGULARIZERS.register("norm_decay", reads="the layers", smoke={"weight": 0.01}, passes=(0, 0, 0))
@dataclass(frozen=True, kw_only=True)
class NormDecay:
    """weight * sum of the norms of the layers; a subgradient is sign(w) on the weights that a norm sums.

    The norm of a layer is that of its matrix, exact for its input sizes, zero padding, stride, dilation and groups; the
    released code ignores groups and dilation and assumes that every kernel fits into its image. The set of summed
    weights changes abruptly between updates, so the direction is smoothed: b <- memory * b, then b = sign(w) on these
    weights, and the gradient is weight * b. The logged `penalty` is weight * <b, w>, which without memory is weight *
    the sum of the norms. Batch norms and biases are not penalized; a layer with several input sizes counts with its
    largest norm.

    Args:
        weight: beta, weight of the norms; the authors try 1e-5 to 0.1, their code has 1e-3. 0 is no penalty.
        norm: "linf", the largest absolute row sum, or "l1", the largest absolute column sum.
        memory: share of the old direction; 0.5 as released, 0 is the subgradient.

    Reference: Liang and Huang, "Large Norms of CNN Layers Do Not Hurt Adversarial Robustness", AAAI 2021,
        arXiv 2009.08435; they conclude that smaller norms do not make networks robust.
    """

    weight: NonNegative = 1e-3
    norm: Literal["l1", "linf"] = "linf"
    memory: ProperShare = 0.5

    def start(self, model: nn.Module) -> "RunningNormDecay":
        return RunningNormDecay(self, model)


class RunningNormDecay(RunningRegularizer):
    """A NormDecay with its directions.

    Args:
        sizes: input sizes of each layer, recorded at the first update.
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
        """Return b of a layer after updating it."""
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
