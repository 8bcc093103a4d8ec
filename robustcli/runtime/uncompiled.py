"""Optimizers that do not import PyTorch's compiler."""

import inspect
from typing import TypeVar, cast

import torch
from torch.optim import Optimizer

T = TypeVar("T", bound=Optimizer)

# Methods that PyTorch excludes from compilation.
_EXCLUDED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def without_compiler(kind: type[T]) -> type[T]:
    """Return a subclass of an optimizer that does the same without importing torch._dynamo.

    PyTorch wraps the methods of optimizers for the case that a compiled function calls them, and the wrappers import
    the compiler, which takes as long as importing torch itself. The project compiles networks only, so the methods
    inside the wrappers are called directly, and gradients are disabled during a step as the wrapper does.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _EXCLUDED}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[T], type(kind.__name__, (kind,), {**methods, "__doc__": kind.__doc__}))
