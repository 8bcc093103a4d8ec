"""Weights of another program in an architecture of this project."""

from dataclasses import dataclass

import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.check import to_plain
from robustcli.foreign import Body
from robustcli.foreign.weights_file import Weights, filled
from robustcli.registry import Chosen, instantiate


@dataclass(frozen=True)
class Architecture:
    """Weights of a file in an architecture of this project."""

    chosen: Chosen
    weights: Weights
    size: int | None = None

    @property
    def name(self) -> str:
        return self.weights.path.name

    @property
    def takes_pixels(self) -> bool:
        return bool(self.chosen.options.normalize == "none")

    def body(self, shape: ImageShape, device: torch.device) -> Body:
        network: nn.Module = instantiate(self.chosen, shape)
        settings = " ".join(f"{key}={value}" for key, value in to_plain(self.chosen.parameters).items())
        words = f"{self.chosen.name}{f' with {settings}' if settings else ''}"
        body = filled(network, self.weights, f"{words} for {shape.words}")
        note = (
            f"the weights fit {words}; they do not tell activation, strides or padding, so a low clean accuracy "
            "may mean that one of these is another"
        )
        return Body(network=network, mean=body.mean, std=body.std, source=body.source, notes=(*body.notes, note))
