"""A network built by the user's own Python code, which is run because the user named it."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError, suggest
from robustcli.models.source import BRINGS_ITS_OWN, Facts, LoadedNetwork, ModelSource, reason
from robustcli.models.weights_file import Weights
from robustcli.models.weights_fit import filled


@dataclass(frozen=True)
class Code(ModelSource):
    """A network that a function of the user returns.

    Args:
        target: "path/file.py:function" or "package.module:function".
        function: with no argument, or with `classes`.
        weights: loaded into the network, if given.
    """

    target: str
    function: Callable[..., Any]
    weights: Weights | None

    @property
    def name(self) -> str:
        return self.target

    @property
    def facts(self) -> Facts:
        return BRINGS_ITS_OWN

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        network = self.function
        if not isinstance(network, nn.Module):
            takes_classes = _takes_classes(self.target, self.function)
            with _users_code(f"{self.target}()"):
                network = self.function(classes=shape.classes) if takes_classes else self.function()
        if not isinstance(network, nn.Module):
            raise RobustCliError(f"--model: {self.target}: returned {type(network).__name__}; expected an nn.Module")
        return LoadedNetwork(network=network) if self.weights is None else filled(network, self.weights, self.target)


def load_code(target: str, weights: Weights | None) -> Code:
    """The function that "path/file.py:function" or "package.module:function" names; its file is run.

    Raises:
        RobustCliError: there is no such file, module or function, or running it failed.
    """
    place, _, attribute = target.rpartition(":")
    if not place or not attribute:
        raise RobustCliError(f"--model: '{target}': write path/file.py:function or package.module:function")
    with _users_code(f"--model: {place}"):
        module = _run_file(Path(place)) if place.endswith(".py") else _import(place)
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise RobustCliError(f"--model: {place} has no '{attribute}'{suggest(attribute, public)}")
    function = getattr(module, attribute)
    if not callable(function):
        raise RobustCliError(
            f"--model: {target} is {type(function).__name__}; expected a function that returns a network"
        )
    return Code(target, function, weights)


def _takes_classes(target: str, function: Callable[..., Any]) -> bool:
    """Return True if a function takes `classes`; other parameters need defaults."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    kinds = inspect.Parameter
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is kinds.empty
        and parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        and (name != "classes" or parameter.kind is kinds.POSITIONAL_ONLY)
    ]
    if needed:
        raise RobustCliError(
            f"--model: {target}: needs {', '.join(needed)}; expected a function without arguments, or with `classes`"
        )
    return "classes" in parameters


@contextmanager
def _users_code(what: str) -> Iterator[None]:
    """Convert an error in a user's code into a message with its place."""
    try:
        yield
    except RobustCliError:
        raise
    except SystemExit as error:
        raise RobustCliError(f"{what}: the code ends the program (sys.exit({error.code}))") from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        # Frames of Python's import machinery do not help the user.
        place = "" if last.filename.startswith("<") else f" ({last.filename}:{last.lineno})"
        raise RobustCliError(f"{what}: {type(error).__name__}: {reason(error)}{place}") from error


def _import(name: str) -> Any:
    # As with `python -m`, modules in the working directory can be imported.
    sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _run_file(path: Path) -> Any:
    if not path.is_file():
        raise RobustCliError(f"--model: {path}: no such file")
    # As with `python file.py`, modules next to the file can be imported.
    sys.path.insert(0, str(path.resolve().parent))
    # A unique name, because the file may be named like an installed package.
    name = f"robust_eval_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
