"""Activations by the names that `activation:` takes, with the definitions that torch lacks."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Sharpness of the parametric softplus, as published: 1 is softplus, infinity is relu.
_SHARPNESS = 10.0


class SmoothReLU(nn.Module):
    """ReLU with a continuous slope: x - log(beta x + 1) / beta for x >= 0, otherwise 0, with a learned beta = raw^2.

    Reference: Xie et al., "Smooth Adversarial Training", 2020.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.full((1,), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        beta = self.raw.square()
        return F.relu(x - (beta * x.abs()).log1p() / beta)


class SmoothBackwardReLU(nn.Module):
    """ReLU whose backward pass uses sigmoid(10 x), the gradient of the parametric softplus.

    Attacks and training follow a gradient that is not the gradient of the function, so only gradient attacks show
    little about robustness.

    Reference: Xie et al., "Smooth Adversarial Training", 2020, which uses it to study smooth gradients by themselves.
    """

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.softplus(x, _SHARPNESS).to(x.dtype)
        # The added term is 0, but has a gradient.
        return F.relu(x).detach() + (smooth - smooth.detach())


class PSSiLU(nn.Module):
    """SiLU with learned sharpness and slope: x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|).

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
    """Activation with a spatial mask m: m relu(x) + (1 - m) t min(x, 0).

    m = sigmoid(a (w * x) + b) with one 3x3 kernel w for all channels. Initially w is the identity, a = 0, b = 2 and
    t = 0, so the activation starts as 0.88 relu. For features without spatial axes, w * x is the center weight times x.
    The formula of the paper is not published: this is an interpretation of its abstract, and results may differ from
    the paper.

    Reference: Guo et al., "Sparta: Spatially Attentive and Adversarially Robust Activations", 2021.
    """

    def __init__(self) -> None:
        super().__init__()
        center = torch.zeros(1, 1, 3, 3)
        center[0, 0, 1, 1] = 1
        self.kernel = nn.Parameter(center)
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


class Reused(nn.Module):
    """Second use of a module in a block; adds no keys to checkpoints."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that torch does not register it.
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
# Activations with one set of parameters for the whole network, as published; others have one set per layer.
SHARED = ("pssilu",)
