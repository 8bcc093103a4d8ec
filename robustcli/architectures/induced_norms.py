"""The matrices that layers are: their transposes, their norms, and the weights that a norm is the sum of."""

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

# A layer without its bias: an input of one example and a weight -> an output.
Map = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Seen:
    """Shapes of one example, call by call."""

    sizes: list[tuple[int, ...]] = field(default_factory=list)


def is_matrix(module: nn.Module) -> bool:
    """Whether it is a convolution or a linear layer; a subclass with a forward of its own is neither."""
    forward = getattr(type(module), "forward", None)
    if isinstance(module, nn.Conv2d):
        return forward in (nn.Conv2d.forward, SameConv2d.forward) and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear) and forward is nn.Linear.forward


@contextmanager
def inputs_seen(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """What each layer is given by the forwards inside."""
    seen = {name: Seen() for name in layers}

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A linear layer treats every position alike, so one is all that it sees.
        axes = 1 if isinstance(module, nn.Linear) else inputs[0].dim() - 1
        seen[name].sizes.append(tuple(inputs[0].shape[-axes:]))

    hooks = [module.register_forward_pre_hook(partial(look, name)) for name, module in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def map_of(module: nn.Module) -> Map:
    """What a layer of which `is_matrix` holds does to an input, its bias left out."""
    if isinstance(module, SameConv2d):
        count = None if module.bias is None else len(module.bias)

        def padded(v: Tensor, weight: Tensor) -> Tensor:
            bias = {} if count is None else {"bias": weight.new_zeros(count)}
            out: Tensor = functional_call(module, {"weight": weight, **bias}, v)
            return out

        return padded
    if isinstance(module, nn.Conv2d):
        layer = module
        return lambda v, weight: F.conv2d(v, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear


def there_and_back(
    apply: Map, weight: Tensor, v: Tensor, returns: Callable[[Tensor], Tensor], *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """W v, and W' times what `returns` makes of it: a linear map's gradient is its transpose.

    With `create_graph` both can be differentiated in the weight.
    """
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        image = apply(v, weight)
        (returned,) = torch.autograd.grad(image, v, returns(image.detach()), create_graph=create_graph)
    return image if create_graph else image.detach(), returned


def row_and_column_sums(
    apply: Map, size: tuple[int, ...], weight: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Sums along the rows and along the columns of the matrix of a weight, for inputs of one size.

    Their largest, for the weight's magnitudes, are the norms induced by linf and by l1: exact, with zero
    padding, stride, dilation and groups, however small the input is.
    """
    ones = torch.ones(1, *size, dtype=weight.dtype, device=weight.device)
    return there_and_back(apply, weight, ones, torch.ones_like, create_graph=create_graph)


def output_count(module: nn.Module, size: tuple[int, ...]) -> int:
    """Numbers in the output of a layer of which `is_matrix` holds, for one input of that size."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        return map_of(module)(torch.zeros(1, *size, dtype=weight.dtype, device=weight.device), weight).numel()


def dense_matrix(apply: Map, size: tuple[int, ...], weight: Tensor) -> Tensor:
    """The matrix of a weight for inputs of one size, written out: (numbers put out, numbers put in)."""
    count = math.prod(size)
    units = torch.eye(count, dtype=weight.dtype, device=weight.device).view(count, *size)
    with torch.no_grad():
        return apply(units, weight).flatten(1).T


def taps_of_norm(module: nn.Module, size: tuple[int, ...], norm: Literal["l1", "linf"]) -> tuple[Tensor, Tensor]:
    """An induced norm of a layer, and which of its weights are summed in it: a scalar, bool in the weight's shape.

    Args:
        module: a layer of which `is_matrix` holds.
        size: of one input of it.
        norm: "linf" (the largest row sum of magnitudes) or "l1" (the largest column sum). Of equal sums one counts.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    with torch.enable_grad():
        magnitudes = weight.detach().abs().requires_grad_()
        rows, columns = row_and_column_sums(map_of(module), size, magnitudes, create_graph=True)
        sums = (rows if norm == "linf" else columns).flatten()
        # Not sums[...]: an index on a GPU would be waited for.
        largest = sums.gather(0, sums.argmax(0, keepdim=True)).squeeze(0)
        (counts,) = torch.autograd.grad(largest, magnitudes)
    # Each weight is met once or not at all; a fast algorithm may say 0.999.
    return largest.detach(), counts > 0.5
