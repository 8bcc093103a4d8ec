"""What a network consists of, without computing anything: weights, cost and sight, by the size of its maps."""

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustcli.architectures import ImageShape


@dataclass(frozen=True)
class Part:
    """All layers whose outputs have one size.

    Args:
        size: (height, width); (1, 1) is the classifier, and what sees means of whole maps.
        channels: of the widest of them.
        parameters: learned numbers.
        macs: multiply-accumulates of convolutions and linear layers, for one image.
        field: side of the square of pixels that a pixel of its last map sees; None is the whole image.
    """

    size: tuple[int, int]
    channels: int
    parameters: int
    macs: int
    field: int | None


@dataclass(frozen=True)
class Anatomy:
    """A network in parts, from the largest maps to the smallest.

    Args:
        parameters: all of them, also those that no layer here owns.
    """

    parts: tuple[Part, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Of one image: convolutions and linear layers; norms, activations and pools are not counted."""
        return sum(part.macs for part in self.parts)


def anatomy(network: nn.Module, shape: ImageShape) -> Anatomy:
    """Follow the shapes of one image through a network of the meta device."""
    sizes: dict[tuple[int, int], dict[str, int]] = defaultdict(lambda: {"channels": 0, "parameters": 0, "macs": 0})
    fields: dict[tuple[int, int], int | None] = {}
    seen: set[int] = set()

    def look(module: nn.Module, _inputs: Any, out: Tensor) -> None:
        size = (out.shape[-2], out.shape[-1]) if out.dim() >= 4 else (1, 1)
        found = sizes[size]
        found["channels"] = max(found["channels"], out.shape[1])
        own = {id(parameter): parameter.numel() for parameter in module.parameters(recurse=False)}
        found["parameters"] += sum(count for key, count in own.items() if key not in seen)
        seen.update(own)
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            found["macs"] += out[0].numel() * module.weight[0].numel()
            sight = getattr(out, "sight", None)
            # What is not made of the image, such as the code of a position, sees none of it.
            if sight is not None:
                side = None if sight.side is None else math.ceil(sight.side)
                # A shortcut that is computed last sees less than the branch beside it.
                before = fields.get(size, 0)
                fields[size] = None if side is None or before is None else max(side, before)
        if isinstance(module, nn.Linear):
            # On every token or pixel that it is given.
            found["macs"] += out[0].numel() * module.in_features
            fields[size] = None

    hooks = [module.register_forward_hook(look) for module in network.modules() if not list(module.children())]
    was_training = network.training
    try:
        with torch.no_grad(), _Watching():  # type: ignore[no-untyped-call]
            image = torch.empty(1, shape.channels, shape.height, shape.width, device="meta")
            image.sight = _Sight(1, 1)  # type: ignore[attr-defined]
            network.eval()(image)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    parts = tuple(
        Part(size=size, field=fields.get(size), **found)
        for size, found in sorted(sizes.items(), reverse=True)
        if found["parameters"]
    )
    return Anatomy(parts, sum(parameter.numel() for parameter in network.parameters()))


@dataclass(frozen=True)
class _Sight:
    """What a pixel of a map sees: a square of pixels of this side (None: all), and how far its neighbour's lies."""

    side: float | None
    pace: float

    def through(self, kernel: int, stride: int, dilation: int) -> "_Sight":
        side = None if self.side is None else self.side + (kernel - 1) * dilation * self.pace
        return _Sight(side, self.pace * stride)

    def beside(self, other: "_Sight") -> "_Sight":
        side = None if self.side is None or other.side is None else max(self.side, other.side)
        return _Sight(side, max(self.pace, other.pace))


_aten = torch.ops.aten
_POOLS = (_aten.max_pool2d_with_indices, _aten.avg_pool2d)
# What sees all pixels of a map at once; a batch norm in evaluation does not.
_WHOLE = (
    _aten.mean,
    _aten._adaptive_avg_pool2d,
    _aten.mm,
    _aten.bmm,
    _aten.addmm,
    _aten.native_group_norm,
    _aten._fft_r2c,
)


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what every tensor that is made of the image sees of it, as an attribute of the tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sights = [part.sight for part in tree_leaves(args) if isinstance(part, Tensor) and hasattr(part, "sight")]
        if sights:
            sight = _after(func.overloadpacket, args, reduce(_Sight.beside, sights))
            for part in tree_leaves(out):
                if isinstance(part, Tensor):
                    part.sight = sight  # type: ignore[attr-defined]
        return out


def _after(operation: Any, args: Any, sight: _Sight) -> _Sight:
    if operation in _WHOLE:
        return _Sight(None, sight.pace)
    if operation is _aten.convolution:
        # Of a clip the last two axes are the sides.
        return sight.through(args[1].shape[-1], args[3][-1], args[5][-1])
    if operation in _POOLS:
        kernel = args[1][0]
        return sight.through(kernel, args[2][0] if len(args) > 2 and args[2] else kernel, 1)
    if operation is _aten.upsample_nearest2d:
        return _Sight(sight.side, sight.pace * args[0].shape[2] / args[1][0])
    return sight
