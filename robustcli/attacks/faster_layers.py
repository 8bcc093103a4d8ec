"""Layers of search copies that take less time on a CPU and compute the same up to rounding.

The forwards of layers are replaced, not the modules, whose attributes a network may read.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Largest number of input channels of a convolution that is taken to see images, not features.
_IMAGE_CHANNELS = 4


def simplify_norms(network: nn.Module) -> None:
    """Let batch norms with fixed statistics multiply and add once."""
    for norm in network.modules():
        # Only what is certain to be the usual computation.
        if type(norm) is nn.BatchNorm2d and not norm.training and norm.running_var is not None:
            norm.forward = _fixed_norm(norm)  # type: ignore[assignment]


def _fixed_norm(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    scale, shift = (values.to(norm.running_var.dtype)[:, None, None] for values in (scale, shift))
    return lambda x: torch.addcmul(shift, x, scale)


def ease_image_gradients(network: nn.Module) -> None:
    """Let strided convolutions of images compute the gradient in their input by a convolution without strides.

    The usual gradient, a transposed convolution with one to three output channels, is slow: it takes longer than all
    other layers of a small network. The outputs stay the same, and no gradient reaches the weights.
    """
    for layer in network.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.in_channels <= _IMAGE_CHANNELS
            and layer.stride[0] == layer.stride[1] > 1
            and layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and isinstance(layer.padding, tuple)
            # Not a weight that is computed from others.
            and isinstance(layer.weight, nn.Parameter)
        ):
            layer.forward = _with_eased_gradient(layer)  # type: ignore[assignment]


def _with_eased_gradient(layer: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    phases = _phases(layer.weight.detach(), layer.stride[0])

    def forward(x: Tensor) -> Tensor:
        if not (x.requires_grad and torch.is_grad_enabled()):
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
        output: Tensor = _ImageConvolution.apply(x, layer, phases)
        return output

    return forward


def _phases(weight: Tensor, stride: int) -> Tensor:
    """Return the weights of the convolution of all phases, (inputs * stride ** 2, outputs, height, width).

    In each direction, pixel p of the padded image meets only taps k of the kernel with k = p modulo the stride. The
    gradient in the pixels with equal remainders, one phase, is a convolution with these taps in reverse order.
    """
    outputs, inputs, height, width = weight.shape
    down, across = -(-height // stride), -(-width // stride)
    padded = F.pad(weight, (0, across * stride - width, 0, down * stride - height))
    taps = padded.view(outputs, inputs, down, stride, across, stride).flip(2, 4)
    phases = taps.permute(1, 3, 5, 0, 2, 4).reshape(inputs * stride**2, outputs, down, across)
    is_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return phases.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


class _ImageConvolution(torch.autograd.Function):
    """Convolution whose gradient in its input is a convolution without strides; see `_phases`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, phases: Tensor) -> Tensor:
        ctx.layer, ctx.phases, ctx.input = layer, phases, (x.shape[2:], x.dtype)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        layer, phases, (size, dtype) = ctx.layer, ctx.phases, ctx.input
        before = [taps - 1 for taps in phases.shape[2:]]
        padded = F.pixel_shuffle(F.conv2d(gradient, phases, padding=before), layer.stride[0])
        # Negative numbers crop.
        ends = [size[axis] + layer.padding[axis] - padded.shape[2 + axis] for axis in (0, 1)]
        found = F.pad(padded, (-layer.padding[1], ends[1], -layer.padding[0], ends[0]))
        return found.to(dtype), None, None
