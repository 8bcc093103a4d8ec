"""ConvNorm: convolutions every output channel of which is preconditioned to have a flat spectrum."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.features import show_black_image
from robustcli.errors import RobustCliError

# An output channel whose kernels have no energy at some frequency would be divided by 0.
_FLOOR = 1e-12
# The share of the present divisor in the running mean falls to its least in this many steps, along a cosine, and stays.
_STEPS, _LEAST_SHARE = 40_000, 0.01


class PreconditionedConv2d(nn.Module):
    """A convolution, each output channel divided by the spectrum of its kernels; then a depthwise convolution.

    Seen as a circular convolution of the zero-padded image, every output channel then has the gain 1 at every
    frequency. No gradient flows through the divisor. It is that of the present weights in training and evaluation
    alike.

    The batch norm that belongs to it is the one that the network has after the convolution anyway.

    Reference: Liu et al., "Convolutional Normalization: Improving Deep Convolutional Network Robustness and
        Training", NeurIPS 2021.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        # The full convolution: all of what a circular one would give.
        self.convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel - 1, groups=groups, bias=False)
        self.affine = nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2, groups=outputs)
        self.kernel = kernel
        self.stride = stride
        self.cut = kernel - 1 - kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        u = self.convolution(x)
        height, width = u.shape[2:]
        if self.kernel == 1:
            # One weight for each input has one and the same energy at every frequency.
            divisor = self.used_divisor(1, 1).to(u.dtype)
            pixel: Tensor = self.affine(u[:, :, :: self.stride, :: self.stride] * divisor)
            return pixel
        divided = torch.fft.rfft2(u.float()) * self.used_divisor(height, width)
        y = torch.fft.irfft2(divided, (height, width)).to(u.dtype)
        y = y[:, :, self.cut : height - self.cut : self.stride, self.cut : width - self.cut : self.stride]
        out: Tensor = self.affine(y)
        return out

    def used_divisor(self, height: int, width: int) -> Tensor:
        """What a forward uses."""
        return self.divisor(height, width)

    def divisor(self, height: int, width: int) -> Tensor:
        """One over the root energy of each output channel's kernels, by frequency: (outputs, height, width // 2 + 1)"""
        return _energy(self.convolution.weight.detach(), height, width).clamp_min(_FLOOR).rsqrt().float()


def _energy(weight: Tensor, height: int, width: int) -> Tensor:
    """sum_i |F(K_i)|^2 of every output channel, by frequency: the transform of the autocorrelation of its kernels.

    That has (2 k - 1)^2 numbers however many inputs there are, so no kernel is transformed by itself. In double
    precision, because an energy near zero is the difference of large sums.
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


class RunningPreconditionedConv2d(PreconditionedConv2d):
    """A preconditioned convolution that is evaluated with a running mean of its divisors, as published.

    Step t moves the mean V to f V_t + (1 - f) V, with V_t the divisor of the weights at step t and
    f = max((1 + cos(pi min(t, 40000) / 40000)) / 2, 0.01), so f stays at 0.01 after 40000 steps. Before the first
    step V is that of the present weights. V moves exactly when the running statistics of batch norms move. It belongs
    to images of one size. The published count of steps starts again in a resumed run; this one continues.
    """

    running_divisor: Tensor
    steps: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups)
        # Without numbers until the size of the maps is known.
        self.register_buffer("running_divisor", torch.zeros(0))
        self.register_buffer("steps", torch.tensor(0))
        # By the name that batch norms have for it.
        self.track_running_stats = True

    def reset_running_stats(self) -> None:
        """The next step begins a new mean."""
        self.steps.zero_()

    def settle(self, x: Tensor) -> None:
        """Begin with the divisor of the present weights, for maps of this size."""
        added = self.kernel - 1
        sides = (1, 1) if self.kernel == 1 else (x.shape[2] + added, x.shape[3] + added)
        self.running_divisor = self.divisor(*sides)

    def used_divisor(self, height: int, width: int) -> Tensor:
        if self.running_divisor.numel() and self.running_divisor.shape[1:] != (height, width // 2 + 1):
            kept = tuple(self.running_divisor.shape[1:])
            raise RobustCliError(
                f"architecture.norm: conv_running keeps divisors for {kept} frequencies, and these maps have "
                f"{(height, width // 2 + 1)}; give it images of the size that it was built for, or write norm: conv"
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
        # A mean that does not exist yet has any size.
        if given is not None and given.shape != own.shape and not (given.numel() and own.numel()):
            self.running_divisor = torch.empty_like(given, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def settle_divisors(network: nn.Module, shape: ImageShape) -> None:
    """Give running divisors their size, so that copies of a network that is not trained yet fit the trained one."""
    parts = [module for module in network.modules() if isinstance(module, RunningPreconditionedConv2d)]
    if parts:
        hooks = [part.register_forward_pre_hook(lambda part, inputs: part.settle(inputs[0])) for part in parts]
        show_black_image(network, shape, hooks)
