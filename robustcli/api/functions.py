"""A model that is a function: as a module which contains the networks that it calls."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

# Maximum number of functions, objects and lists between a model and a network in it.
_DEPTH = 5


class Function(nn.Module):
    """A callable as a module, whose parts are the networks that the callable refers to.

    So they are set to eval mode for an evaluation and restored afterwards, although only the callable is known.

    Args:
        function: pixels in [0, 1] -> logits.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.networks = nn.ModuleList(networks_in(function))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def networks_in(function: object) -> list[nn.Module]:
    """Return the modules that a callable refers to: by name, as attributes, and in other functions and lists."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()

    def collect(value: object, depth: int) -> None:
        if isinstance(value, nn.Module):
            found.setdefault(id(value), value)
        elif depth and id(value) not in seen:
            seen.add(id(value))
            for part in _parts(value):
                collect(part, depth - 1)

    collect(function, _DEPTH)
    return list(found.values())


def _parts(value: object) -> Iterator[Any]:
    """Yield the objects that a function, an object that can be called, or a container refers to."""
    if isinstance(value, FunctionType):
        yield from _referred(value)
    elif isinstance(value, MethodType):
        yield value.__func__
        # Its methods use the attributes of an object also if it cannot be called itself.
        yield value.__self__ if isinstance(value.__self__, nn.Module) else getattr(value.__self__, "__dict__", {})
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif callable(value) and not isinstance(value, type):
        yield from getattr(value, "__dict__", {}).values()
        yield value.__call__


def _referred(function: FunctionType) -> Iterator[Any]:
    """Yield what a function refers to: variables around it, defaults, and global names of its module."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from (function.__defaults__ or (), function.__kwdefaults__ or {})
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        # Functions of libraries are not searched; networks of the user are not there.
        if not isinstance(value, FunctionType) or value.__globals__ is function.__globals__:
            yield value


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that code uses, also inside comprehensions and functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
