"""Read files of torch.save without running code from the file.

Pickle names functions and classes, and a reader that imports them runs code of the author. This reader knows only the
names that rebuild tensors. Everything else becomes a `Skipped`, which only keeps its contents, so that weights next to
an argparse.Namespace, a NumPy scalar or a training history can be read.
"""

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from torch import _utils as rebuild

from robustcli.errors import Interrupted, RobustCliError, in_one_line
from robustcli.store.file_kinds import other_kind

# Maximum depth at which objects are searched for the tensors of a network that was saved as a whole.
_DEEPEST = 100


class Skipped:
    """Placeholder for an object of an unknown class; keeps its data."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> Self:
        skipped = object.__new__(cls)
        skipped.contents = {}
        return skipped

    contents: dict[Hashable, Any]

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        pass

    def __call__(self, *_arguments: Any, **_options: Any) -> Self:
        return self

    def __setstate__(self, state: Any) -> None:
        # With slots the state is a pair of dictionaries.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.contents.update(part)

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self.contents[key] = value

    def append(self, _value: Any) -> None:
        """Ignore the value."""

    extend = add = append


@dataclass(frozen=True)
class PlainFile:
    """Contents of a file as data: tensors, numbers, texts, lists and dictionaries.

    Args:
        contents: the saved value; objects of unknown classes become dictionaries.
        skipped: names of these classes, without duplicates.
    """

    contents: Any
    skipped: tuple[str, ...]


def read_plain(path: Path) -> PlainFile:
    """Read a file on the CPU.

    Raises:
        RobustCliError: it was not written by torch.save, or is damaged.
    """
    kind = other_kind(path)
    if kind is not None:
        raise RobustCliError(f"{path}: the file is {kind}")
    skipped: dict[str, type[Skipped]] = {}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            known = _known(module, name)
            if known is not None:
                return known
            full = f"{module}.{name}"
            return skipped.setdefault(full, type("Skipped", (Skipped,), {}))

    module = ModuleType("plain_pickle_reader")
    vars(module).update(Unpickler=Reader, load=lambda file, **options: Reader(file, **options).load())
    try:
        with warnings.catch_warnings():
            # For example that quantized tensors are deprecated, which does not help the user.
            warnings.simplefilter("ignore")
            contents = torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
        return PlainFile(_unwrapped(contents, _DEEPEST), tuple(skipped))
    except Interrupted:
        raise
    except Exception as error:  # a broken file may raise anything
        raise RobustCliError(
            f"{path}: cannot be read as plain data ({in_one_line(error)}); expected a file that torch.save wrote"
        ) from error


def _known(module: str, name: str) -> Any:
    """Return a function or class that the file may use, or None."""
    # Python 2 and protocol 2 of pickle, which torch.save uses, have the old name of the module.
    found = _SAFE.get((module.replace("__builtin__", "builtins"), name))
    if found is not None:
        return found
    value = getattr(torch, name, None) if module == "torch" else None
    is_constant = isinstance(value, torch.dtype | torch.layout | torch.qscheme | torch.memory_format)
    is_storage = isinstance(value, type) and name.endswith("Storage")
    return value if is_constant or is_storage else None


def _unwrapped(value: Any, depth: int) -> Any:
    """Replace skipped objects by dictionaries; a network that was saved as a whole becomes its state dict."""
    if isinstance(value, Skipped):
        found = value.contents
        if "_parameters" in found and "_modules" in found:
            return _state_of(value, depth)
        value = found
    if isinstance(value, Mapping) and depth:
        return {key: _unwrapped(item, depth - 1) for key, item in value.items()}
    return value


def _state_of(network: Skipped, depth: int, prefix: str = "") -> dict[str, Any]:
    state: dict[str, Any] = {}
    for table in ("_parameters", "_buffers"):
        tensors = network.contents.get(table)
        if isinstance(tensors, Mapping):
            unsaved = network.contents.get("_non_persistent_buffers_set") or ()
            state |= {f"{prefix}{name}": item for name, item in tensors.items() if name not in unsaved}
    modules = network.contents.get("_modules")
    for name, module in modules.items() if isinstance(modules, Mapping) and depth else ():
        if isinstance(module, Skipped):
            state |= _state_of(module, depth - 1, f"{prefix}{name}.")
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _parameter(data: Any, *_more: Any) -> Any:
    return data


def _subclassed(function: Callable[..., Any], _type: Any, arguments: tuple[Any, ...], _state: Any) -> Any:
    return function(*arguments)


def _encoded(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _dictionary(*_factory: Any) -> dict[Any, Any]:
    return {}


_SAFE: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _dictionary,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): bytearray,
    ("_codecs", "encode"): _encoded,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("torch._utils", "_rebuild_tensor"): rebuild._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): rebuild._rebuild_tensor_v3,
    ("torch._utils", "_rebuild_sparse_tensor"): rebuild._rebuild_sparse_tensor,
    ("torch._utils", "_rebuild_qtensor"): rebuild._rebuild_qtensor,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): rebuild._rebuild_meta_tensor_no_storage,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclassed,
}
