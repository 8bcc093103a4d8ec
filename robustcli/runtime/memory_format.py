"""Memory formats: in which order the numbers of a tensor lie, which changes speed and rounding only."""

import torch
from torch import nn


def to_channels_last(network: nn.Module) -> nn.Module:
    """Hold the weights of 2D convolutions channel by channel, in place; 3D ones, which have no such format, stay."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == len("nchw"):
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network
