"""Profile of a network: parameters, multiply-accumulates and receptive fields by stage, without computing outputs."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from robustcli.architectures import ImageShape
from robustcli.measuring.receptive_field import FACTORS, LINEAR, Grid, Sight, sides, sight_after, weights_of
from robustcli.models.build import network_for_random_images
from robustcli.registry.registry import MemberSpec

# Names of stages at any depth: layer1, layer.0, block1, blocks.0, stages.0.
_STAGE = re.compile(r"(?:.*\.)?((?:layer|block|stage)s?\.?\d+)")


@dataclass(frozen=True)
class Part:
    """A stage, the layers before, between or after stages, or all layers with maps of one size.

    Args:
        name: name of the stage, "stem", "between" or "head"; empty for parts that are divided by the size of maps.
        size: (height, width) of the output maps. Tokens have the size of their grid; the classifier, and layers that
            read means of whole maps, have (1, 1).
        channels: channels of the widest layer.
        parameters: number of parameters.
        macs: multiply-accumulates of convolutions, linear layers and matrix products for one image.
        field: side of the receptive field in pixels; None: the whole image.
    """

    name: str
    size: Grid
    channels: int
    parameters: int
    macs: int
    field: int | None


@dataclass(frozen=True)
class Profile:
    """Parts of a network: stem, stages and head in this order, or from the largest to the smallest maps.

    Args:
        parameters: number of all parameters, also of unused ones.
    """

    parts: tuple[Part, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image: convolutions, linear layers and matrix products.

        Norms, activations, pools and products with fixed matrices do not count.
        """
        return sum(part.macs for part in self.parts)


def profile_of(chosen: MemberSpec, shape: ImageShape) -> Profile:
    """Return the profile of the architecture of a spec."""
    with torch.device("meta"):
        return network_profile(network_for_random_images(chosen, shape), shape)


def network_profile(network: nn.Module, shape: ImageShape) -> Profile:
    """Return the profile of a network on the meta device, by following one image through its operations.

    If at least two modules are sequences of blocks with the name layer, block or stage and a number, these are the
    parts. Otherwise the network is divided by the size of its maps.
    """
    stages = _stages(network)
    tracker = _Tracker(by_stage=bool(stages))
    hooks = []
    for number, (name, module) in enumerate(stages.items(), start=1):
        after = "head" if number == len(stages) else "between"
        hooks.append(module.register_forward_pre_hook(tracker.entering(name)))
        hooks.append(module.register_forward_hook(tracker.leaving(name, after)))
    was_training = network.training
    try:
        with torch.no_grad(), tracker:
            image = torch.empty(1, *shape.size, device="meta")
            image.sight = Sight(1, 1, (shape.height, shape.width))  # type: ignore[attr-defined]
            network.eval()(image)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    rows = [(key, row) for key, row in tracker.rows.items() if row.parameters]
    if not stages:
        rows.sort(key=lambda item: item[0], reverse=True)
    parts = tuple(
        Part(
            name=key if isinstance(key, str) else "",
            size=row.size,
            channels=row.channels,
            parameters=row.parameters,
            macs=row.macs,
            field=row.fields.get(row.size),
        )
        for key, row in rows
    )
    return Profile(parts, sum(parameter.numel() for parameter in network.parameters()))


def _stages(network: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost stages by name; none if there are less than two."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for path, module in network.named_modules():
        matched = _STAGE.fullmatch(path)
        is_inside = any(path.startswith(f"{outer}.") for outer in found)
        if matched and not is_inside and (isinstance(module, nn.Sequential) or matched[1].startswith("stage")):
            found[path] = (matched[1], module)
    return dict(found.values()) if len(found) > 1 else {}


@dataclass
class _Row:
    """A part under construction; `fields` has the receptive fields by size of map."""

    size: Grid = (1, 1)
    channels: int = 0
    parameters: int = 0
    macs: int = 0
    fields: dict[Grid, int | None] = field(default_factory=dict)

    def sees(self, sight: Sight) -> None:
        side = None if sight.side is None else math.ceil(sight.side)
        # A shortcut that is computed last has a smaller receptive field than its branch.
        before = self.fields.get(sight.grid, 0)
        self.fields[sight.grid] = None if side is None or before is None else max(side, before)


_aten = torch.ops.aten
# Operations whose result is like their first operand, whatever the others are: scalars or of its shape. torch finds
# the shapes of most of them in Python, which takes most of the time of a profile.
_ALIKE = (_aten.relu, _aten.silu, _aten.gelu, _aten.sigmoid, _aten.add, _aten.sub, _aten.mul)


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow tensors that depend on the image or on weights, by attributes of the tensors, and sum them in rows.

    Weights count where they first meet the image, so also weights outside layers and reshaped ones.
    """

    def __init__(self, by_stage: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: dict[str | Grid, _Row] = {}
        self._stage = "stem" if by_stage else None
        self._seen: set[nn.Parameter] = set()

    def entering(self, name: str) -> Any:
        def enter(_module: nn.Module, _inputs: Any) -> None:
            self._stage = name

        return enter

    def leaving(self, name: str, after: str) -> Any:
        def leave(_module: nn.Module, _inputs: Any, out: Any) -> None:
            self._stage = after
            if isinstance(out, Tensor) and hasattr(out, "sight"):
                self.rows[name].size = out.sight.grid

        return leave

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket
        out = _result(func, operation, args, kwargs or {})
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        sights = [part.sight for part in tensors if hasattr(part, "sight")]
        weights = tuple(dict.fromkeys(weight for part in tensors for weight in weights_of(part)))
        outputs = [part for part in tree_leaves(out) if isinstance(part, Tensor)]
        if sights and outputs:
            sight = sight_after(operation, args, outputs[0], reduce(Sight.merged, sights))
            for part in outputs:
                part.sight = sight  # type: ignore[attr-defined]
            self._count(operation, args, outputs[0], sight, weights)
        elif weights and outputs:
            for part in outputs:
                part.weights = weights  # type: ignore[attr-defined]
            if operation is _aten.convolution:
                # Independent of the image, such as the code of a position.
                self._multiplied(operation, args, outputs[0], self._row(sides(outputs[0])))
        return out

    def _count(self, operation: Any, args: Any, out: Tensor, sight: Sight, weights: Iterable[nn.Parameter]) -> None:
        new = [weight for weight in weights if weight not in self._seen]
        factors = [args[i] for i in FACTORS.get(operation, ())]
        is_learned = any(weights_of(factor) for factor in factors)
        # A product with a factor that depends on neither weights nor image is a fixed transform, such as a low-pass.
        is_product = bool(factors) and (is_learned or all(hasattr(factor, "sight") for factor in factors))
        if not new and not is_product:
            return
        row = self._row(sight.grid)
        self._seen.update(new)
        row.parameters += sum(weight.numel() for weight in new)
        if is_product:
            self._multiplied(operation, args, out, row)
            if is_learned:
                row.sees(sight)

    def _multiplied(self, operation: Any, args: Any, out: Tensor, row: _Row) -> None:
        # The registry counts multiplication and addition separately.
        row.macs += flop_registry[operation](*args, out_val=out) // 2
        if operation is _aten.convolution:
            row.channels = max(row.channels, out.shape[1])
        elif operation in LINEAR:
            row.channels = max(row.channels, out.shape[-1])

    def _row(self, grid: Grid) -> _Row:
        row = self.rows.setdefault(grid if self._stage is None else self._stage, _Row())
        row.size = grid
        return row


def _result(func: Any, operation: Any, args: Any, kwargs: Any) -> Any:
    """Return the result of an operation on the meta device, where only shapes matter."""
    if operation is _aten.native_batch_norm and not args[5]:
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    if operation is _aten.convolution and not args[6]:
        x, weight = args[:2]
        sides = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(x.shape[2:], weight.shape[2:], *args[3:6], strict=True)
        )
        return x.new_empty((len(x), len(weight), *sides))
    if operation in _ALIKE and all(_is_alike(part, args[0]) for part in args[1:]):
        return torch.empty_like(args[0])
    return func(*args, **kwargs)


def _is_alike(part: Any, first: Any) -> bool:
    """Return whether an operand leaves shape and type of a sum or a product to the first one."""
    if isinstance(part, Tensor):
        return bool(part.shape == first.shape and part.dtype == first.dtype)
    return isinstance(part, int) or bool(first.is_floating_point())
