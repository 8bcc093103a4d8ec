"""Small networks and images for checks; each depends only on its arguments."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.branches import Branched
from robustcli.architectures.channel_gates import ChannelGate, Mask
from robustcli.architectures.layers import Layers
from robustcli.architectures.multibn import kind_gate
from robustcli.architectures.supernet import Supernet


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside, and restore it at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def images(
    count: int, channels: int = 1, side: int = 8, *, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random images in [0, 1]; some pixels are exactly 0 or 1."""
    x = torch.rand((count, channels, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.2 * x - 0.1).clamp(0, 1).to(dtype)


def labels(count: int, classes: int = 10, *, seed: int = 2) -> Tensor:
    """Random labels."""
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def conv_net(
    channels: int = 1, classes: int = 10, *, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Two convolutions with batch norms and a linear layer, for 8 x 8 pixels; running statistics are not trivial."""
    with drawn_from(seed):
        network = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(8 * 16, classes),
        ).to(dtype)
        for _ in range(3):
            network(torch.rand(16, channels, 8, 8, dtype=dtype))
    return network


def branched_net(branches: int, *, branch: int | None = None, **settings: Any) -> nn.Module:
    """conv_net with slightly different branches of batch norms, with a gate or with one branch for all images."""
    network = conv_net(**settings)
    dtype = next(network.parameters()).dtype
    with drawn_from(settings.get("seed", 0) + 1):
        gate = kind_gate(ImageShape(settings.get("channels", 1), 8, 8, 10), branches, 4).to(dtype)
        part = Branched(gate if branch is None else None, network, branches, branch, False)
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return part


def gated_net(*, mask: Mask = "scaled", detaches: bool = True, **settings: Any) -> nn.Module:
    """conv_net with two channel gates before its classifier, one of each kind of probe."""
    body = conv_net(**settings)
    assert isinstance(body, nn.Sequential)
    with drawn_from(settings.get("seed", 0) + 1):
        gates = [ChannelGate(8, settings.get("classes", 10), hidden, mask, detaches) for hidden in (5, 0)]
    dtype = next(body.parameters()).dtype
    return nn.Sequential(*body[:6], *(gate.to(dtype) for gate in gates), *body[6:])


def search_net(
    channels: int = 1, classes: int = 10, *, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A supernet of four narrow cells with one node each, with unequal shares."""
    with drawn_from(seed):
        supernet = Supernet(ImageShape(channels, 8, 8, classes), Layers(affine=False), width=2, cells=4, nodes=1)
        for alpha in supernet.alphas.values():
            alpha.data += torch.randn_like(alpha)
        return nn.Sequential(nn.Dropout(dropout), supernet).to(dtype)


def linear_net(pixels: int, classes: int = 10, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random linear classifier."""
    with drawn_from(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).to(dtype)
