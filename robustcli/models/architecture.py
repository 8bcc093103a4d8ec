"""Weights of another program in an architecture of this project."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.models.body import Body
from robustcli.models.weights_file import Weights, filled
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
        return "as architecture.normalize=none says" if self.chosen.options.normalize == "none" else None

    def body(self, shape: ImageShape, device: torch.device) -> Body:
        network: nn.Module = instantiate(self.chosen, shape)
        settings = " ".join(f"{key}={value}" for key, value in to_plain(self.chosen.parameters).items())
        words = f"{self.chosen.name}{f' with {settings}' if settings else ''}"
        body = filled(network, self.weights, f"{words} for {shape.words}")
        note = (
            f"the weights fit {words}; what has no weights (activation, strides, padding, what a shortcut is fed) is "
            "taken from these settings, and a low clean accuracy may mean that one of them is wrong"
        )
        notes = (*body.notes, note)
        if self.plain_because and body.mean is not None:
            return Body(network=network, notes=(*notes, f"the normalisation {body.source} was left out"))
        return replace(body, notes=notes)
