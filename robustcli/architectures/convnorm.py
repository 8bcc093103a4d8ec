"""ConvNorm: convolutions whose output channels are preconditioned to have a flat spectrum."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.features import show_black_image
from robustcli.architectures.running_statistics import RunningStatistics
from robustcli.errors import RobustCliError

# Floor of the energy, so that channels without energy at a frequency are not divided by 0.
_FLOOR = 1e-12
# The weight of the current divisor in the running mean falls to its minimum along a cosine of this many steps.
_STEPS, _LEAST_SHARE = 40_000, 0.01


class PreconditionedConv2d(nn.Module):
    """Convolution with each output channel divided by the spectrum of its kernels, then a depthwise convolution.

    Seen as a circular convolution of the zero-padded image, every output channel has gain 1 at every frequency. No
    gradient flows through the divisor, which belongs to the current weights, in training and in evaluation. The batch
    norm of the method is the one that the network already has after the convolution.

    Reference: Liu et al., "Convolutional Normalization: Improving Deep Convolutional Network Robustness and
        Training", NeurIPS 2021.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        # The full convolution contains all values of a circular one.
        self.convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel - 1, groups=groups, bias=False)
        self.affine = nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2, groups=outputs)
        self.kernel = kernel
        self.stride = stride
        self.cut = kernel - 1 - kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        u = self.convolution(x)
        height, width = u.shape[2:]
        if self.kernel == 1:
            # A 1x1 kernel has the same energy at every frequency.
            divisor = self.used_divisor(1, 1).to(u.dtype)
            pixel: Tensor = self.affine(u[:, :, :: self.stride, :: self.stride] * divisor)
            return pixel
        divided = torch.fft.rfft2(u.float()) * self.used_divisor(height, width)
        y = torch.fft.irfft2(divided, (height, width)).to(u.dtype)
        y = y[:, :, self.cut : height - self.cut : self.stride, self.cut : width - self.cut : self.stride]
        out: Tensor = self.affine(y)
        return out

    def used_divisor(self, height: int, width: int) -> Tensor:
        """Return the divisor that the forward pass uses."""
        return self.divisor(height, width)

    def divisor(self, height: int, width: int) -> Tensor:
        """Return 1 / sqrt(energy of an output channel's kernels) by frequency: (outputs, height, width // 2 + 1)."""
        return _energy(self.convolution.weight.detach(), height, width).clamp_min(_FLOOR).rsqrt().float()


def _energy(weight: Tensor, height: int, width: int) -> Tensor:
    """Return the energy sum_i |F(K_i)|^2 of every output channel by frequency.

    It is the transform of the autocorrelation of the kernels, which has (2 k - 1)^2 values for any number of inputs, so
    kernels are not transformed one by one. Double precision, because an energy near zero is a difference of large sums.
    """
    outputs, _, kernel, _ = weight.shape
    flat = weight.double().flatten(2)
    products = flat.transpose(1, 2) @ flat
    place = torch.arange(kernel, device=weight.device)
    apart, reach = place[:, None] - place + kernel - 1, 2 * kernel - 1
    bins = (apart[:, None, :, None] * reach + apart[None, :, None, :]).flatten()
    correlation = products.new_zeros(outputs, reach**2).index_add_(1, bins, products.flatten(1))
    shifts = torch.arange(1 - kernel, kernel, dtype=torch.float64, device=weight.device)

    def phases(side: int, count: int) -> Tensor:
        return 2 * math.pi / side * torch.arange(count, dtype=torch.float64, device=weight.device)[:, None] * shifts

    rows, columns = phases(height, height), phases(width, width // 2 + 1)
    square = correlation.view(outputs, reach, reach)
    energy: Tensor = rows.cos() @ square @ columns.cos().T - rows.sin() @ square @ columns.sin().T
    return energy


class RunningPreconditionedConv2d(PreconditionedConv2d, RunningStatistics):
    """Preconditioned convolution that is evaluated with a running mean of its divisors, as published.

    Step t moves the mean V to f V_t + (1 - f) V, with V_t the divisor of the weights at step t and
    f = max((1 + cos(pi min(t, 40000) / 40000)) / 2, 0.01), so f stays at 0.01 after 40000 steps. Before the first
    step, V is the divisor of the current weights. V is updated whenever batch norms update their running statistics. It
    fits images of one size. In the published code the step count restarts in a resumed run; here it continues.
    """

    running_divisor: Tensor
    steps: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups)
        # Empty until the size of the maps is known.
        self.register_buffer("running_divisor", torch.zeros(0))
        self.register_buffer("steps", torch.tensor(0))
        # Same name as in batch norms.
        self.track_running_stats = True

    def reset_running_stats(self) -> None:
        """Start a new mean at the next step."""
        self.steps.zero_()

    def settle(self, x: Tensor) -> None:
        """Initialize the mean with the divisor of the current weights, for maps of this size."""
        added = self.kernel - 1
        sides = (1, 1) if self.kernel == 1 else (x.shape[2] + added, x.shape[3] + added)
        self.running_divisor = self.divisor(*sides)

    def used_divisor(self, height: int, width: int) -> Tensor:
        if self.running_divisor.numel() and self.running_divisor.shape[1:] != (height, width // 2 + 1):
            kept = tuple(self.running_divisor.shape[1:])
            raise RobustCliError(
                f"architecture.norm: conv_running has divisors for {kept} frequencies, but these maps have "
                f"{(height, width // 2 + 1)}; use images of the size that it was built for, or write norm: conv"
            )
        if not self.training:
            return self.running_divisor if self.running_divisor.numel() else self.divisor(height, width)
        present = self.divisor(height, width)
        if self.track_running_stats:
            self._follow(present)
        return present

    def _follow(self, present: Tensor) -> None:
        if not self.running_divisor.numel():
            self.running_divisor = present.clone()
        done = self.steps.clamp_max(_STEPS)
        share = ((1 + torch.cos(math.pi * done / _STEPS)) / 2).clamp_min(_LEAST_SHARE)
        precision = self.running_divisor.dtype
        self.running_divisor.lerp_(present.to(precision), share.to(precision))
        self.steps.add_(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        given = state_dict.get(f"{prefix}running_divisor")
        own = self.running_divisor
        # An uninitialized mean fits any size.
        if given is not None and given.shape != own.shape and not (given.numel() and own.numel()):
            self.running_divisor = torch.empty_like(given, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def settle_divisors(network: nn.Module, shape: ImageShape) -> None:
    """Initialize running divisors, so that copies of an untrained network have the shapes of the trained one."""
    parts = [module for module in network.modules() if isinstance(module, RunningPreconditionedConv2d)]
    if parts:
        hooks = [part.register_forward_pre_hook(lambda part, inputs: part.settle(inputs[0])) for part in parts]
        show_black_image(network, shape, hooks)
