"""Change the stem of a network for large images, so that it keeps the resolution of small ones.

The stem is found while the network runs: the convolution that is called first, and a pool that follows before any
other layer shrinks the map.
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

# Kernel of the convolution after the change.
_KERNEL = 3
_LARGEST_KERNEL = 7
_OWN = "resnet18, wide_resnet, regnet and other networks of this project take small images as they are"


@dataclass(frozen=True)
class _Call:
    """A call of a layer, with the sides (height, width) of its input and output maps."""

    layer: nn.Module
    before: tuple[int, ...]
    after: tuple[int, ...]


def make_stem_small(network: nn.Module, shape: ImageShape, name: str) -> None:
    """Make the first convolution of a network keep the resolution, and remove a pool right after it, in place.

    The convolution gets stride 1. A kernel above 3x3 is cropped to its center and scaled, so that it has the spread of
    an initialized 3x3 kernel. All layers after the stem stay unchanged.

    Args:
        name: name of the network, for messages.

    Raises:
        RobustCliError: the network has no such stem.
    """
    calls = _calls(network, shape)
    first = next((number for number, call in enumerate(calls) if isinstance(call.layer, nn.Conv2d)), None)
    if first is None or calls[first].before != (shape.height, shape.width):
        raise _refusal(name, "it does not start with a convolution of the image", _OWN)
    convolution = calls[first].layer
    assert isinstance(convolution, nn.Conv2d)
    _require_strided(convolution, name)
    pool = _pool_after(calls[first], calls[first + 1 :], name)
    _shrink(convolution)
    if pool is not None:
        place = next(place for place, module in network.named_modules() if module is pool)
        network.set_submodule(place, nn.Identity())


def stem_text(stem: Stem) -> str:
    """Return a phrase for messages about the images that a network accepts."""
    return " with a small stem" if stem == "small" else ""


def _require_strided(convolution: nn.Conv2d, name: str) -> None:
    kernel, stride = convolution.kernel_size, convolution.stride
    found = f"its first convolution is {kernel[0]}x{kernel[1]} with stride {stride[0]}"
    if stride == (1, 1):
        raise _refusal(name, f"{found}, which keeps the resolution", "write stem: as_it_is")
    if kernel == stride:
        advice = "convnext, vit and xcit of this project take smaller ones as `patch`"
        raise _refusal(name, f"{found}, so it cuts images into patches", advice)
    is_plain = convolution.dilation == (1, 1) and convolution.padding_mode == "zeros"
    is_known = stride == (2, 2) and kernel[0] == kernel[1] and kernel[0] in range(_KERNEL, _LARGEST_KERNEL + 1, 2)
    if not is_plain or not is_known or isinstance(convolution.padding, str):
        raise _refusal(name, f"{found}, but the supported stems are 3x3, 5x5 or 7x7 with stride 2", _OWN)


def _pool_after(first: _Call, later: list[_Call], name: str) -> nn.Module | None:
    """Return the pool of the stem: the first layer that shrinks the maps of the first convolution, if it is a pool."""
    for call in later:
        if 1 < call.before[0] < first.after[0]:
            raise _refusal(name, "the maps of its first convolution are shrunk outside any layer", _OWN)
        if call.before != first.after:
            return None  # a gate, which reads means of whole maps
        if call.after != call.before:
            if isinstance(call.layer, nn.MaxPool2d | nn.AvgPool2d):
                return call.layer
            if isinstance(call.layer, nn.Conv2d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
                return None  # the next stage, or a gate
            found = f"{type(call.layer).__name__}, neither a pool nor a convolution, changes the size of its first maps"
            raise _refusal(name, found, _OWN)
    return None


def _shrink(convolution: nn.Conv2d) -> None:
    """Set the stride to 1 and crop the kernel to its center; keep the layer, because its class may compute weights."""
    edge = (convolution.kernel_size[0] - _KERNEL) // 2
    convolution.stride = (1, 1)
    if edge:
        middle = convolution.weight.detach()[:, :, edge:-edge, edge:-edge]
        convolution.weight = nn.Parameter(middle * (convolution.kernel_size[0] / _KERNEL))
        convolution.kernel_size = (_KERNEL, _KERNEL)
        # A layer that computes its padding in `forward` has the padding 0.
        assert not isinstance(convolution.padding, str)
        convolution.padding = tuple(max(0, padding - edge) for padding in convolution.padding)


def _calls(network: nn.Module, shape: ImageShape) -> list[_Call]:
    """Return the calls of layers from maps to maps in order, until the end or an error."""
    calls: list[_Call] = []
    # Small images may cause errors in later layers; the stem comes first.
    with _recorded(network, calls), suppress(RuntimeError, ValueError, AssertionError):
        follow(network, shape)
    return calls


@contextmanager
def _recorded(network: nn.Module, calls: list[_Call]) -> Iterator[None]:
    def record(layer: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        before = inputs[0] if inputs else None
        if isinstance(before, Tensor) and isinstance(out, Tensor) and before.dim() == out.dim() == 4:
            calls.append(_Call(layer, tuple(before.shape[2:]), tuple(out.shape[2:])))

    layers = [module for module in network.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refusal(name: str, found: str, advice: str) -> RobustCliError:
    return RobustCliError(f"architecture.stem: small does not fit '{name}': {found}; {advice}")
