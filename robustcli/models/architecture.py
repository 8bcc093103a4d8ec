"""Weights of another program in an architecture of this project."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.models.source import LoadedNetwork
from robustcli.models.weights_file import Weights
from robustcli.models.weights_fit import filled
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.specs.check import to_plain


@dataclass(frozen=True)
class Architecture:
    """Weights of a file in an architecture of this project."""

    chosen: MemberSpec
    weights: Weights
    size: int | None = None

    @property
    def name(self) -> str:
        return self.weights.path.name

    @property
    def plain_because(self) -> str | None:
        return None

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        network: nn.Module = instantiate(self.chosen, shape)
        settings = " ".join(f"{key}={value}" for key, value in to_plain(self.chosen.parameters).items())
        words = f"{self.chosen.name}{f' with {settings}' if settings else ''}"
        loaded = filled(network, self.weights, f"{words} for {shape.text}")
        note = (
            f"the weights fit {words}; what has no weights (activation, strides, padding, what a shortcut is fed) is "
            "taken from these settings, and a low clean accuracy may mean that one of them is wrong"
        )
        notes = (*loaded.notes, note)
        if self.chosen.options.normalize != "none":
            return replace(loaded, notes=notes)
        if loaded.mean is not None:
            notes += (f"the normalisation {loaded.source} was left out",)
        return replace(loaded, mean=(0.0,), std=(1.0,), source="as architecture.normalize=none says", notes=notes)
