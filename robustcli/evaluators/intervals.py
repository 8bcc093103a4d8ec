"""Interval bound propagation: intervals that surely contain the values of every layer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.errors import EvaluationError, in_one_line
from robustcli.evaluators import chunks


def certified(model: nn.Module, x: Tensor, y: Tensor, radius: float, batch_size: int) -> Tensor:
    """Mask (n,) of the images whose class is y and cannot change in the box of this radius.

    Raises:
        EvaluationError: the network has a layer that cannot be bounded; names it.
    """
    return torch.cat([_certified(model, x[part], y[part], radius) for part in chunks(len(x), batch_size)])


def _certified(model: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
    try:
        with torch.no_grad():
            # float() rounds the ends of the intervals, so the box is slightly wider than asked.
            logits = model(Interval((x - radius).clamp(0, 1), (x + radius).clamp(0, 1)))
    except (TypeError, AttributeError) as error:
        # An operator or an attribute of tensors that intervals do not have.
        raise EvaluationError(f"interval_bounds: this network cannot be bounded: {in_one_line(error)}") from error
    if not isinstance(logits, Interval):
        raise EvaluationError("interval_bounds: the network does not compute its logits from the images by layers")
    own = logits.low.gather(1, y[:, None])
    others = logits.high.scatter(1, y[:, None], -torch.inf)
    is_certified: Tensor = (own > others).all(1)
    return is_certified


class Interval:
    """All values between two tensors; torch functions map it to an interval that contains their results."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high

    @property
    def shape(self) -> torch.Size:
        return self.low.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.low.dtype

    @property
    def device(self) -> torch.device:
        return self.low.device

    @property
    def requires_grad(self) -> bool:
        return False

    @property
    def is_cuda(self) -> bool:
        return self.low.is_cuda

    @property
    def ndim(self) -> int:
        return self.low.dim()

    def dim(self) -> int:
        return self.low.dim()

    def size(self, *axis: int) -> Any:
        return self.low.size(*axis)

    def __len__(self) -> int:
        return len(self.low)

    def __add__(self, other: Any) -> "Interval":
        return _sum(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Interval":
        if isinstance(other, Interval):
            return Interval(self.low - other.high, self.high - other.low)
        return Interval(self.low - other, self.high - other)

    def __rsub__(self, other: Any) -> "Interval":
        return _sum(-self, other)

    def __neg__(self) -> "Interval":
        return Interval(-self.high, -self.low)

    def __mul__(self, factor: Any) -> "Interval":
        if isinstance(factor, Interval):
            ends = torch.stack([a * b for a in (self.low, self.high) for b in (factor.low, factor.high)])
            return Interval(ends.amin(0), ends.amax(0))
        one, other = self.low * factor, self.high * factor
        return Interval(torch.minimum(one, other), torch.maximum(one, other))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> "Interval":
        if isinstance(divisor, Interval):
            raise _refusal("a division by values that depend on the image")
        return Interval.__mul__(self, 1 / divisor)

    def __iadd__(self, other: Any) -> "Interval":
        return self._becomes(self + other)

    def __isub__(self, other: Any) -> "Interval":
        return self._becomes(self - other)

    def __imul__(self, factor: Any) -> "Interval":
        return self._becomes(self * factor)

    def __itruediv__(self, divisor: Any) -> "Interval":
        return self._becomes(self / divisor)

    def _becomes(self, found: "Interval") -> "Interval":
        """Change the tensors themselves, so that whatever shares their memory changes too."""
        self.low.copy_(found.low)
        self.high.copy_(found.high)
        return self

    def __getitem__(self, where: Any) -> "Interval":
        return Interval(self.low[where], self.high[where])

    def __getattr__(self, name: str) -> Any:
        function = getattr(Tensor, name, None)
        if not callable(function) or name.startswith("_"):
            raise AttributeError(f"the attribute '{name}' of a tensor")
        return lambda *args, **kwargs: Interval.__torch_function__(function, (), (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        written = getattr(func, "__name__", str(func))
        name = written.removesuffix("_")
        kwargs = dict(kwargs or {})
        if name in _BY_NAME:
            found: Interval = _BY_NAME[name](*args, **kwargs)
            return found if name == written else args[0]._becomes(found)
        if name in _MONOTONE:
            return _at_both_ends(func, args, kwargs)
        raise _refusal(f"'{name}'")


def _refusal(what: str) -> EvaluationError:
    known = ", ".join(sorted({*_MONOTONE, *_BY_NAME}))
    return EvaluationError(f"interval_bounds: this network uses {what}, which cannot be bounded here (known: {known})")


def _at_both_ends(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Interval:
    """Result of a function that is increasing in each of its inputs."""

    def end(side: str) -> Tensor:
        def chosen(value: Any) -> Any:
            if isinstance(value, Interval):
                return getattr(value, side)
            return type(value)(map(chosen, value)) if isinstance(value, list | tuple) else value

        result: Tensor = func(*(chosen(value) for value in args), **{key: chosen(item) for key, item in kwargs.items()})
        return result

    return Interval(end("low"), end("high"))


def _linear(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """Map an interval through a linear layer: the center by the weights, the radius by their absolute values."""

    def apply(x: Interval, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Interval:
        if not isinstance(x, Interval) or isinstance(weight, Interval):
            raise _refusal("weights that depend on the image")
        center, radius = (x.high + x.low) / 2, (x.high - x.low) / 2
        middle = function(center, weight, bias, *args, **kwargs)
        reach = function(radius, weight.abs(), None, *args, **kwargs)
        return Interval(middle - reach, middle + reach)

    return apply


def _batch_norm(
    x: Interval,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Interval:
    if training or running_mean is None or running_var is None:
        raise _refusal("a batch norm without running statistics")
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    moved = (x - running_mean.view(shape)) * scale.view(shape)
    return moved if bias is None else moved + bias.view(shape)


def _sum(one: Any, other: Any, alpha: float = 1) -> Interval:
    if alpha != 1:
        other = other * alpha
    if isinstance(one, Interval) and isinstance(other, Interval):
        return Interval(one.low + other.low, one.high + other.high)
    interval, fixed = (one, other) if isinstance(one, Interval) else (other, one)
    return Interval(interval.low + fixed, interval.high + fixed)


def _difference(one: Any, other: Any, alpha: float = 1) -> Interval:
    return _sum(one, -other, alpha)


def _leaky_relu(x: Interval, negative_slope: float = 0.01, inplace: bool = False) -> Interval:
    if negative_slope < 0:
        raise _refusal("a leaky ReLU with a negative slope")
    return Interval(F.leaky_relu(x.low, negative_slope, inplace), F.leaky_relu(x.high, negative_slope, inplace))


def _elu(x: Interval, alpha: float = 1.0, inplace: bool = False) -> Interval:
    if alpha < 0:
        raise _refusal("an ELU with a negative alpha")
    return Interval(F.elu(x.low, alpha, inplace), F.elu(x.high, alpha, inplace))


def _dropout(x: Interval, p: float = 0.5, training: bool = True, inplace: bool = False) -> Interval:
    if training:
        raise _refusal("dropout in train mode")
    return x


# Functions that are increasing in every input, and those that only move or average values.
_ACTIVATIONS = {"relu", "relu6", "hardtanh", "selu", "celu", "softplus", "sigmoid", "tanh", "clamp", "clamp_min"}
_POOLS = {"max_pool2d", "boolean_dispatch", "adaptive_max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "sum"}
_MOVES = {"cat", "stack", "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "expand", "pad"}
_COPIES = {"contiguous", "to", "float", "detach", "clone"}
_MONOTONE = frozenset(_ACTIVATIONS | _POOLS | _MOVES | _COPIES)
_BY_NAME: dict[str, Callable[..., Any]] = {
    "linear": _linear(F.linear),
    "conv2d": _linear(F.conv2d),
    "batch_norm": _batch_norm,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "add": _sum,
    "sub": _difference,
    "mul": lambda one, other: one * other if isinstance(one, Interval) else other * one,
    "div": lambda one, other: one / other,
    "dropout": _dropout,
}
