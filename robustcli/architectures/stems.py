"""The stem of a network for large images, changed to keep the resolution of small ones.

What a stem is, is read from a network as it runs: the convolution that is called first, and a pool that follows it
before anything else has shrunk the map.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.borrowed import follow
from robustcli.errors import RobustCliError
from robustcli.registry.types import Stem

# Of the convolution after the change.
_KERNEL = 3
_LARGEST_KERNEL = 7
_OWN = "resnet18, wide_resnet, regnet and other networks of this project take small images as they are"


@dataclass(frozen=True)
class _Call:
    """A layer that made a map of another one, and the sides (height, width) of both."""

    layer: nn.Module
    before: tuple[int, ...]
    after: tuple[int, ...]


def make_stem_small(network: nn.Module, shape: ImageShape, name: str) -> None:
    """Let the first convolution of a network, in place, keep the resolution, and take away a pool right after it.

    The convolution gets stride 1, and of a kernel above 3x3 its middle remains, enlarged so that its outputs keep
    their spread: that is how a 3x3 kernel would have been drawn. Everything after the stem stays as it is.

    Args:
        name: of the network, for messages.

    Raises:
        RobustCliError: the stem is none of that kind.
    """
    calls = _calls(network, shape)
    first = next((number for number, call in enumerate(calls) if isinstance(call.layer, nn.Conv2d)), None)
    if first is None or calls[first].before != (shape.height, shape.width):
        raise _refusal(name, "it does not begin with a convolution of the image", _OWN)
    convolution = calls[first].layer
    assert isinstance(convolution, nn.Conv2d)
    _require_strided(convolution, name)
    pool = _pool_after(calls[first], calls[first + 1 :], name)
    _shrink(convolution)
    if pool is not None:
        place = next(place for place, module in network.named_modules() if module is pool)
        network.set_submodule(place, nn.Identity())


def said_of(stem: Stem) -> str:
    """Of a stem, for messages about the images that a network takes."""
    return " with a small stem" if stem == "small" else ""


def _require_strided(convolution: nn.Conv2d, name: str) -> None:
    kernel, stride = convolution.kernel_size, convolution.stride
    words = f"its first convolution is {kernel[0]}x{kernel[1]} with stride {stride[0]}"
    if stride == (1, 1):
        raise _refusal(name, f"{words}, which keeps the resolution", "write stem: as_it_is")
    if kernel == stride:
        advice = "convnext, vit and xcit of this project take smaller ones as `patch`"
        raise _refusal(name, f"{words}, so it cuts images into patches", advice)
    is_plain = convolution.dilation == (1, 1) and convolution.padding_mode == "zeros"
    is_known = stride == (2, 2) and kernel[0] == kernel[1] and kernel[0] in range(_KERNEL, _LARGEST_KERNEL + 1, 2)
    if not is_plain or not is_known or isinstance(convolution.padding, str):
        raise _refusal(name, f"{words}, and stems that are known here have 3x3, 5x5 or 7x7 with stride 2", _OWN)


def _pool_after(first: _Call, later: list[_Call], name: str) -> nn.Module | None:
    """The pool of the stem: what shrinks the maps of the first convolution, if that is a pool."""
    for call in later:
        if 1 < call.before[0] < first.after[0]:
            raise _refusal(name, "no layer of its own shrinks the maps of its first convolution", _OWN)
        if call.before != first.after:
            return None  # a gate, which sees means of whole maps
        if call.after != call.before:
            if isinstance(call.layer, nn.MaxPool2d | nn.AvgPool2d):
                return call.layer
            if isinstance(call.layer, nn.Conv2d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
                return None  # the next stage, or a gate
            words = f"{type(call.layer).__name__}, neither a pool nor a convolution, changes the size of its first maps"
            raise _refusal(name, words, _OWN)
    return None


def _shrink(convolution: nn.Conv2d) -> None:
    """Stride 1, and of the kernel its middle; the layer stays what it is, so that weights which it computes are."""
    edge = (convolution.kernel_size[0] - _KERNEL) // 2
    convolution.stride = (1, 1)
    if edge:
        middle = convolution.weight.detach()[:, :, edge:-edge, edge:-edge]
        convolution.weight = nn.Parameter(middle * (convolution.kernel_size[0] / _KERNEL))
        convolution.kernel_size = (_KERNEL, _KERNEL)
        # A layer that pads by itself, from its kernel and stride, has the padding 0.
        assert not isinstance(convolution.padding, str)
        convolution.padding = tuple(max(0, padding - edge) for padding in convolution.padding)


def _calls(network: nn.Module, shape: ImageShape) -> list[_Call]:
    """Layers that make maps of maps, in the order in which an image meets them, as far as it gets."""
    calls: list[_Call] = []
    # Small images may end on the way; the stem is what comes first.
    with _heard(network, calls), suppress(RuntimeError, ValueError, AssertionError):
        follow(network, shape)
    return calls


@contextmanager
def _heard(network: nn.Module, calls: list[_Call]) -> Iterator[None]:
    def hear(layer: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        before = inputs[0] if inputs else None
        if isinstance(before, Tensor) and isinstance(out, Tensor) and before.dim() == out.dim() == 4:
            calls.append(_Call(layer, tuple(before.shape[2:]), tuple(out.shape[2:])))

    layers = [module for module in network.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(hear) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refusal(name: str, found: str, advice: str) -> RobustCliError:
    return RobustCliError(f"architecture.stem: small does not fit '{name}': {found}; {advice}")
