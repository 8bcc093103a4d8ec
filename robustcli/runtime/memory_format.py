"""Memory formats, which change only speed and rounding."""

import torch
from torch import nn


def to_channels_last(network: nn.Module) -> nn.Module:
    """Convert all 4D parameters and buffers to channels_last in place, and return the network."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == len("nchw"):
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network
