"""How training calls the network, and which of its parameters decay."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.specs.settings import TrainSettings


class TrainingModel(nn.Module):
    """The network as training calls it: passes in the precision asked for, logits always in fp32.

    Args:
        network: shared with everything else; this only changes how it is called.
    """

    def __init__(self, network: nn.Module, settings: TrainSettings, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self._call = torch.compile(network) if settings.compile else network
        self._format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self._is_bf16 = settings.precision == "bf16"
        self._device_type = device.type

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=self._format)
        with torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=self._is_bf16):
            logits: Tensor = self._call(x)
        return logits.float()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode inside; its mode is restored."""
    was_training = network.training
    network.eval()
    try:
        yield network
    finally:
        network.train(was_training)


def parameter_groups(network: nn.Module, weight_decay: float, exclude: str) -> list[dict[str, Any]]:
    """Parameters with and without weight decay.

    Args:
        exclude: "none"; "bn": weights and biases of normalisation layers; "bn_and_bias": also all biases;
            "vectors": also everything else along a single axis, and learned positions.
    """
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    spared = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, norms)
            is_bias = exclude == "bn_and_bias" and name == "bias"
            if exclude != "none" and (is_norm or is_bias or (exclude == "vectors" and _is_vector(name, parameter))):
                spared.add(parameter)
    groups = [
        {"params": [p for p in network.parameters() if p not in spared], "weight_decay": weight_decay},
        {"params": [p for p in network.parameters() if p in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_vector(name: str, parameter: nn.Parameter) -> bool:
    """Whether there is no more than one axis to it, as of biases, scales and class tokens; positions count as such.

    Axes of length 1 do not count, so temperatures (heads, 1, 1) of an attention are vectors too. The name is that
    within a module: pos_embed here, pos_embedding in torchvision.
    """
    return parameter.numel() == max(parameter.shape, default=1) or name.startswith("pos_embed")
