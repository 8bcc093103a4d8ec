"""What `activation:` may name, by the field's names; those that torch does not have are written out."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The published sharpness of the parametric softplus: 1 is softplus itself, infinity is relu.
_SHARPNESS = 10.0


class SmoothReLU(nn.Module):
    """x - log(beta x + 1) / beta for x >= 0, otherwise 0: a relu with a continuous slope, beta = raw^2 learned.

    Reference: Xie et al., "Smooth Adversarial Training", 2020.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((1,), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        beta = self.raw.square()
        return F.relu(x - (beta * x.abs()).log1p() / beta)


class SmoothBackwardReLU(nn.Module):
    """max(x, 0), whose gradient is taken for sigmoid(10 x), that of the parametric softplus.

    Attackers and weights follow that slope, which is not the function's; so gradients alone say little about how robust
    it is.

    Reference: Xie et al., "Smooth Adversarial Training", 2020, which asks what smooth gradients alone do.
    """

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.softplus(x, _SHARPNESS).to(x.dtype)
        # What is added is 0, and has a slope.
        return F.relu(x).detach() + (smooth - smooth.detach())


class PSSiLU(nn.Module):
    """x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|): a silu of learned sharpness, less a learned share of the line.

    Reference: Dai, Mahloujifar and Mittal, "Parameterizing Activation Functions for Adversarial Robustness", 2021.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.full((1,), 1e-8))

    def forward(self, x: Tensor) -> Tensor:
        beta = self.beta.abs()
        return x * ((self.alpha.abs() * x).sigmoid() - beta) / (1 - beta)


class SpartaLike(nn.Module):
    """m relu(x) + (1 - m) t min(x, 0), with a mask m of the surroundings: this project's reading of an abstract.

    m = sigmoid(a (w * x) + b) with one 3x3 kernel w for all channels (at first the identity), a = 0, b = 2 and
    t = 0 at first, so it begins as 0.88 relu. The formula of the paper is not published; numbers that this gives
    are not the paper's. Features without space are their own surroundings.

    Reference: Guo et al., "Sparta: Spatially Attentive and Adversarially Robust Activations", 2021.
    """

    def __init__(self) -> None:
        super().__init__()
        centre = torch.zeros(1, 1, 3, 3)
        centre[0, 0, 1, 1] = 1
        self.kernel = nn.Parameter(centre)
        self.gain = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.full((1,), 2.0))
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            channels = x.shape[1]
            seen = F.conv2d(x, self.kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)
        else:
            seen = self.kernel[0, 0, 1, 1] * x
        mask = (self.gain * seen + self.bias).sigmoid()
        return mask * F.relu(x) + (1 - mask) * self.slope * x.clamp_max(0)


class Again(nn.Module):
    """A module that is used once more in its block, under a name that adds nothing to the keys of a checkpoint."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # In a tuple, where torch does not look for modules.
        self.of = (module,)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.of[0](x)
        return out


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "psoftplus": lambda: nn.Softplus(_SHARPNESS),
    "relu_smooth_backward": SmoothBackwardReLU,
    "smooth_relu": SmoothReLU,
    "pssilu": PSSiLU,
    "sparta_like": SpartaLike,
}
# Learned once for the whole network, as published; of the others every place has its own.
SHARED = ("pssilu",)
