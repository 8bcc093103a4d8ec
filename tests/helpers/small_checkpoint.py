"""A checkpoint of a small network for 8 x 8 pixels, as `robust train` writes it but without a training."""

from pathlib import Path

import torch
from torch import nn

from robustcli.architectures import ImageShape, Network
from robustcli.contracts.networks import drawn_from, images
from robustcli.models.build import build_network
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import Checkpoint

_SHAPE = ImageShape(1, 8, 8, 10)
_SPEC = """
name: source
data: {name: digits, val_size: 100}
architecture: {name: small_cnn}
threat: {norm: linf, eps: 0.1}
defense: natural
train: {epochs: 1}
evaluate: {clean: clean}
"""


def random_network(*, seed: int = 0) -> Network:
    """A random network in eval mode that knows several classes."""
    with drawn_from(seed):
        network = build_network(ExperimentSpec.parse(_SPEC, "source").architecture, _SHAPE, (0.0,), (1.0,))
    with torch.no_grad():
        list(network.parameters())[-1].sub_(network(images(64, seed=9)).mean(0))
    return network.eval()


def save_network(path: Path, network: nn.Module) -> None:
    shape = [_SHAPE.channels, _SHAPE.height, _SHAPE.width, _SHAPE.classes]
    Checkpoint(spec=_SPEC, shape=shape, mean=[0.0], std=[1.0], weights=network.state_dict()).write(path)
