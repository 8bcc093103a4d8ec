"""Networks and images made of sines, so that they can be rebuilt anywhere; in float64."""

import math

import torch
from torch import Tensor, nn


def sines(count: int, slope: float, bend: float) -> Tensor:
    """sin(slope i + bend sqrt(i + 1)) for i = 0 .. count - 1."""
    i = torch.arange(count, dtype=torch.float64)
    return torch.sin(slope * i + bend * torch.sqrt(i + 1))


class SineLinear(nn.Module):
    """z = W (x - 1/2) + b over 100 images of 1x8x8, 10 classes; mean logits are zero over the images."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0.5 + 0.2 * sines(6400, 0.9, 0.37).view(100, 1, 8, 8)
        self.weight = nn.Parameter(sines(640, 1.7, 0.3).view(10, 64))
        self.bias = nn.Parameter(-((self.images.flatten(1) - 0.5) @ self.weight.detach().T).mean(0))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T + self.bias


class SineConv(nn.Module):
    """Two ReLU convolutions and a linear layer over 64 images of 3x8x8, 10 classes; mean logits are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0.5 + 0.4 * sines(12288, 0.9, 0.37).view(64, 3, 8, 8)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.linear = nn.Linear(256, 10)
        self.double()
        with torch.no_grad():
            for layer, weight, bias in (
                (self.conv1, sines(432, 1.7, 0.3) * 2 / math.sqrt(27), sines(16, 2.2, 0.8)),
                (self.conv2, sines(2304, 2.3, 0.7) * 2 / math.sqrt(144), sines(16, 2.8, 1.2)),
                (self.linear, sines(2560, 3.1, 1.1) * 2 / math.sqrt(256), sines(10, 3.6, 1.6)),
            ):
                layer.weight.copy_(weight.view_as(layer.weight))
                layer.bias.copy_(0.1 * bias)
            self.linear.bias -= self(self.images).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.conv2(torch.relu(self.conv1(2 * x - 1))))
        logits: Tensor = self.linear(hidden.flatten(1))
        return logits


def labeled(model: SineLinear | SineConv) -> tuple[nn.Module, Tensor, Tensor]:
    """The model and its images in single precision, and the labels that it gives them in double."""
    with torch.no_grad():
        y = model(model.images).argmax(1)
    return model.float().eval(), model.images.float(), y
