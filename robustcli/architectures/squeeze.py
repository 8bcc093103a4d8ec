"""Gates that weight channels by the means of all maps: squeeze-and-excitation, plain and residual."""

import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: multiply each channel by a number in (0, 1) that two layers compute from channel means.

    Reference: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """

    def __init__(self, channels: int, squeezed: int, *, bias: bool = True) -> None:
        super().__init__()
        # 1x1 convolutions, as in public checkpoints.
        self.fc1 = nn.Conv2d(channels, squeezed, 1, bias=bias)
        self.fc2 = nn.Conv2d(squeezed, channels, 1, bias=bias)

    def forward(self, v: Tensor) -> Tensor:
        means = v.mean((2, 3), keepdim=True)
        out: Tensor = v * self.fc2(F.relu(self.fc1(means))).sigmoid()
        return out


class ResidualSqueezeExcitation(nn.Module):
    """Residual squeeze-and-excitation: m + SE(norm(m)).

    Reference: Huang et al., "Revisiting Residual Networks for Adversarial Robustness", CVPR 2023.
    """

    def __init__(self, channels: int, squeezed: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.se = SqueezeExcitation(channels, squeezed, bias=False)

    def forward(self, m: Tensor) -> Tensor:
        out: Tensor = m + self.se(self.norm(m))
        return out
