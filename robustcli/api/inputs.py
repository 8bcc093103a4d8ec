"""Check and convert the arguments of the API's functions."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from os import PathLike, fspath
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.api.functions import Function
from robustcli.errors import RobustCliError
from robustcli.registry.types import Norm, Ratio
from robustcli.specs.check import checked_settings
from robustcli.specs.settings import ThreatSettings
from robustcli.specs.yamlfile import parse_scalar
from robustcli.threat.threat import ThreatModel

Model: TypeAlias = nn.Module | Callable[[Tensor], Tensor]
Array: TypeAlias = Tensor | NDArray[Any]
Labels: TypeAlias = Array | Sequence[int]
Eps: TypeAlias = float | str | Fraction

_LEVELS = 255


def module_of(model: Model) -> nn.Module:
    """Return a model as a module.

    Raises:
        RobustCliError: it cannot be called.
    """
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        hint = "; robustcli.load(...) makes a network of a name or path" if isinstance(model, str) else ""
        raise RobustCliError(f"model: found {type(model).__name__}; expected a module or another callable{hint}")
    return Function(model)


def device_of(network: nn.Module, x: object) -> torch.device:
    """Return the device of a network; that of the images if it has no parameters and buffers, or is a function."""
    # A function may move the images itself.
    held = None if isinstance(network, Function) else next(chain(network.parameters(), network.buffers()), None)
    if held is not None:
        return held.device
    return x.device if isinstance(x, Tensor) else torch.device("cpu")


def threat_of(norm: Norm, eps: Eps) -> ThreatModel:
    """Return the threat model.

    Raises:
        RobustCliError: the norm or the radius is invalid.
    """
    given = {"norm": norm, "eps": parse_scalar(eps) if isinstance(eps, str) else plain(eps)}
    settings = checked_settings(ThreatSettings, given, ("threat",), "threat model")
    return ThreatModel(settings.norm, Fraction(settings.eps))


def name_of(where: str, value: object) -> str:
    """Return a name or a path as text.

    Raises:
        RobustCliError: it is neither.
    """
    found = fspath(value) if isinstance(value, str | PathLike) else None
    if not isinstance(found, str):
        raise RobustCliError(f"{where}: found {type(value).__name__}; expected a name or a path")
    return found


def count_of(where: str, value: object, least: int) -> int:
    """Return a whole number.

    Raises:
        RobustCliError: it is not a whole number, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise RobustCliError(f"{where}: found {value!r}; expected a whole number, {least} or more")
    return int(value)


def _tensor_of(value: Tensor | NDArray[Any]) -> Tensor:
    """Return a tensor, which shares the memory of an array that torch can read as it is.

    Raises:
        TypeError: an array of a type that torch does not have.
    """
    if isinstance(value, Tensor):
        return value.detach()
    # Reversed, read-only and foreign arrays are copied.
    return torch.as_tensor(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))


def images_of(x: object, device: torch.device) -> Tensor:
    """Return images as float32 (n, c, h, w) in [0, 1] on a device.

    Raises:
        RobustCliError: they have another shape, type or range.
    """
    if not isinstance(x, np.ndarray | Tensor):
        raise RobustCliError(f"x: found {type(x).__name__}; expected a NumPy array or a tensor (n, c, h, w)")
    try:
        images = _tensor_of(x)
    except TypeError:
        raise RobustCliError(f"x: found {x.dtype}; expected floats in [0, 1], or uint8") from None
    if images.dim() != 4 or not len(images):
        raise RobustCliError(f"x: found shape {tuple(images.shape)}; expected (n, c, h, w) with at least one image")
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        raise RobustCliError(
            f"x: found shape {tuple(images.shape)}, channels last; expected (n, c, h, w): use x.transpose(0, 3, 1, 2) "
            "of NumPy or x.permute(0, 3, 1, 2) of torch"
        )
    if images.dtype == torch.uint8:
        images = images.to(device).float() / _LEVELS
    elif images.is_floating_point():
        images = images.to(device, torch.float32)
    else:
        raise RobustCliError(f"x: found {x.dtype}; expected floats in [0, 1], or uint8")
    low, high = float(images.min()), float(images.max())
    # Written so that NaN, for which every comparison is false, is refused too.
    if not (low >= 0 and high <= 1):
        hint = ": divide by 255" if low >= 0 and 1 < high <= _LEVELS else ": normalization belongs inside the model"
        raise RobustCliError(f"x: found pixels from {low:.4g} to {high:.4g}; expected [0, 1]{hint}")
    return images.contiguous()


def labels_of(y: object, count: int, device: torch.device) -> Tensor:
    """Return labels as int64 (n,) on a device.

    Raises:
        RobustCliError: they are not integers, one per image.
    """
    try:
        labels = _tensor_of(y if isinstance(y, Tensor) else np.asarray(y))
    except (TypeError, ValueError) as error:
        raise RobustCliError(f"y: found {type(y).__name__}; expected class numbers (n,)") from error
    if labels.dim() != 1 or len(labels) != count:
        hint = ": use y.argmax(1) of one-hot labels" if labels.dim() == 2 and len(labels) == count else ""
        raise RobustCliError(f"y: found shape {tuple(labels.shape)} for {count} images; expected ({count},){hint}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise RobustCliError(f"y: found {labels.dtype}; expected whole numbers, the classes")
    return labels.to(device, torch.int64)


def plain(value: Any) -> Any:
    """Return Python values as a spec holds them: quotients such as "8/255" or 8 / 255 become exact, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Fraction):
        return Ratio(value)
    if isinstance(value, str):
        number = parse_scalar(value) if "/" in value else None
        return number if isinstance(number, Ratio) else value
    if isinstance(value, float) and not isinstance(value, Ratio):
        if not math.isfinite(value):
            # As in a file of YAML, where only finite numbers are numbers.
            return str(value)
        steps = round(value * _LEVELS)
        # 8 / 255 is the double nearest to the quotient that users mean; 0.1 stays 0.1.
        is_quotient = len(repr(value)) > 10 and steps / _LEVELS == value
        return Ratio(Fraction(steps, _LEVELS)) if is_quotient else value
    return value
