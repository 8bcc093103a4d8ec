"""Networks of the tests: with random statistics, without memory, their size, and the operations of their equations."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.contracts.networks import drawn_from
from robustcli.measuring.network_profile import network_profile

CIFAR = ImageShape(3, 32, 32, 10)
IMAGENET = ImageShape(3, 224, 224, 1000)
State = dict[str, Tensor]


def build(name: str, shape: ImageShape = CIFAR, **settings: Any) -> nn.Module:
    network: nn.Module = ARCHITECTURES.get(name)(shape, **settings)
    return network


def build_weightless(name: str, shape: ImageShape = CIFAR, **settings: Any) -> nn.Module:
    ARCHITECTURES.get(name)
    with torch.device("meta"):
        return build(name, shape, **settings)


def build_small(name: str, shape: ImageShape = CIFAR, seed: int = 0, **settings: Any) -> nn.Module:
    """A narrow network in eval mode with random running statistics and affine maps."""
    torch.manual_seed(seed)
    network = build(name, shape, **settings).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.3 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.3)
    return network


def images(shape: ImageShape, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, shape.channels, shape.height, shape.width, generator=generator)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, shape: ImageShape) -> int:
    """Counted with the counter of `robust show` and `robust plan`."""
    return network_profile(network, shape).macs


def stirred(network: nn.Module) -> nn.Module:
    """In eval mode, with weights and statistics unlike those of a new network."""
    with drawn_from(2):
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network.eval()


def norm(state: State, name: str, x: Tensor) -> Tensor:
    return F.batch_norm(
        x,
        state[f"{name}.running_mean"],
        state[f"{name}.running_var"],
        state[f"{name}.weight"],
        state[f"{name}.bias"],
        eps=1e-5,
    )


def convolve(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)


def classify(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), state[f"{name}.weight"], state[f"{name}.bias"])
