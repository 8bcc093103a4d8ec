"""ConvNorm: convolutions every output channel of which is preconditioned to have a flat spectrum."""

import torch
from torch import Tensor, nn

# An output channel whose kernels have no energy at some frequency would be divided by 0.
_FLOOR = 1e-12


class PreconditionedConv2d(nn.Module):
    """A convolution, each output channel divided by the spectrum of its kernels; then a depthwise convolution.

    Seen as a circular convolution of the zero-padded image, every output channel then has the gain 1 at every
    frequency. No gradient flows through the divisor. It is that of the present weights in training and evaluation
    alike; the published code evaluates with a running mean of it, which depends on the size of the images.

    The batch norm that belongs to it is the one that the network has after the convolution anyway.

    Reference: Liu et al., "Convolutional Normalization: Improving Deep Convolutional Network Robustness and
        Training", NeurIPS 2021.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        # The full convolution: all of what a circular one would give.
        self.convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel - 1, groups=groups, bias=False)
        self.affine = nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2, groups=outputs)
        self.stride = stride
        self.cut = kernel - 1 - kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        u = self.convolution(x)
        if self.convolution.kernel_size == (1, 1):
            # One weight for each input has one and the same energy at every frequency.
            pixel: Tensor = self.affine(u[:, :, :: self.stride, :: self.stride] * self.divisor(1, 1).to(u.dtype))
            return pixel
        height, width = u.shape[2:]
        divided = torch.fft.rfft2(u.float()) * self.divisor(height, width)
        y = torch.fft.irfft2(divided, (height, width)).to(u.dtype)
        y = y[:, :, self.cut : height - self.cut : self.stride, self.cut : width - self.cut : self.stride]
        out: Tensor = self.affine(y)
        return out

    def divisor(self, height: int, width: int) -> Tensor:
        """One over the root energy of each output channel's kernels, by frequency: (outputs, height, width // 2 + 1)"""
        spectrum = torch.fft.rfft2(self.convolution.weight.detach().float(), (height, width))
        energy: Tensor = spectrum.abs().square().sum(1)
        return energy.clamp_min(_FLOOR).rsqrt()
