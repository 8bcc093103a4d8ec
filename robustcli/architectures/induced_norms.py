"""Layers as matrices: transposes, induced norms, and the weights that a norm sums."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robustcli.architectures.convolutions import SameConv2d

# A layer without its bias: (input of one example, weight) -> output.
Map = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Seen:
    """Shapes of one input, for every call of a layer."""

    sizes: list[tuple[int, ...]] = field(default_factory=list)


def is_matrix(module: nn.Module) -> bool:
    """Return True for convolutions and linear layers, but not for subclasses with another `forward`."""
    forward = getattr(type(module), "forward", None)
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        known = (nn.Conv2d.forward, SameConv2d.forward, nn.Conv3d.forward)
        return forward in known and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear) and forward is nn.Linear.forward


@contextmanager
def inputs_seen(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Record the input shapes of layers in the forward passes inside the context."""
    seen = {name: Seen() for name in layers}

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A linear layer treats all positions alike, so record one position.
        axes = 1 if isinstance(module, nn.Linear) else inputs[0].dim() - 1
        seen[name].sizes.append(tuple(inputs[0].shape[-axes:]))

    hooks = [module.register_forward_pre_hook(partial(record, name)) for name, module in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def map_of(module: nn.Module) -> Map:
    """Return the linear map of a layer without its bias; `is_matrix` must hold."""
    if isinstance(module, SameConv2d):
        count = None if module.bias is None else len(module.bias)

        def padded(v: Tensor, weight: Tensor) -> Tensor:
            bias = {} if count is None else {"bias": weight.new_zeros(count)}
            out: Tensor = functional_call(module, {"weight": weight, **bias}, v)
            return out

        return padded
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        layer, convolved = module, F.conv3d if isinstance(module, nn.Conv3d) else F.conv2d
        return lambda v, weight: convolved(v, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear


def there_and_back(
    apply: Map, weight: Tensor, v: Tensor, returns: Callable[[Tensor], Tensor], *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Return W v and W' returns(W v), using that the gradient of a linear map is its transpose.

    With `create_graph`, both can be differentiated with respect to the weight.
    """
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        image = apply(v, weight)
        (returned,) = torch.autograd.grad(image, v, returns(image.detach()), create_graph=create_graph)
    return image if create_graph else image.detach(), returned


def row_and_column_sums(
    apply: Map, size: tuple[int, ...], weight: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the row sums and the column sums of the matrix of a weight, for inputs of one size.

    For the magnitudes of the weight, the largest row sum and column sum are the norms induced by linf and by l1. They
    are exact for zero padding, stride, dilation, groups and small inputs.
    """
    ones = torch.ones(1, *size, dtype=weight.dtype, device=weight.device)
    return there_and_back(apply, weight, ones, torch.ones_like, create_graph=create_graph)


def output_count(module: nn.Module, size: tuple[int, ...]) -> int:
    """Return the number of output values of a layer for one input of a size; `is_matrix` must hold."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        return map_of(module)(torch.zeros(1, *size, dtype=weight.dtype, device=weight.device), weight).numel()


def dense_matrix(apply: Map, size: tuple[int, ...], weight: Tensor) -> Tensor:
    """Return the dense matrix of a weight for inputs of one size: (output values, input values)."""
    count = math.prod(size)
    units = torch.eye(count, dtype=weight.dtype, device=weight.device).view(count, *size)
    with torch.no_grad():
        return apply(units, weight).flatten(1).T


def taps_of_norm(module: nn.Module, size: tuple[int, ...], norm: Literal["l1", "linf"]) -> tuple[Tensor, Tensor]:
    """Return an induced norm of a layer (a scalar) and a mask of the weights that it sums.

    Args:
        module: layer for which `is_matrix` holds.
        size: size of one input.
        norm: "linf" (the largest row sum of magnitudes) or "l1" (the largest column sum); the first of equal sums.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    with torch.enable_grad():
        magnitudes = weight.detach().abs().requires_grad_()
        rows, columns = row_and_column_sums(map_of(module), size, magnitudes, create_graph=True)
        sums = (rows if norm == "linf" else columns).flatten()
        # Not sums[...], which would wait for the GPU.
        largest = sums.gather(0, sums.argmax(0, keepdim=True)).squeeze(0)
        (counts,) = torch.autograd.grad(largest, magnitudes)
    # A weight counts once or not at all; fast convolution algorithms may give 0.999.
    return largest.detach(), counts > 0.5
