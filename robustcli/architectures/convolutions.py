"""Convolutions of residual networks, with PyTorch's or TensorFlow's padding."""

import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias, padded with one zero on every side."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: ceil(n / stride) outputs per axis.

    If the number of zeros is odd, the extra one is at the end. With stride 2 and kernel 3, an even side gets a single
    zero at the right and at the bottom, so kernels sit one pixel further than with symmetric padding; an odd side gets
    one zero at both ends.
    """

    def forward(self, input: Tensor) -> Tensor:
        top, bottom = self._zeros(input.shape[2], axis=0)
        left, right = self._zeros(input.shape[3], axis=1)
        return super().forward(F.pad(input, (left, right, top, bottom)))

    def _zeros(self, side: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        outputs = -(-side // stride)
        zeros = max((outputs - 1) * stride + kernel - side, 0)
        return zeros // 2, zeros - zeros // 2
