"""Weights that another program saved: found in their file, told apart from their wrapping, loaded whole or not at all.

Only data are read, never code (`weights_only`). What is peeled off is said in notes; a weight that does not fit is an
error that names it.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.errors import RobustCliError, suggest
from robustcli.models.key_families import recognise
from robustcli.models.script import is_torchscript
from robustcli.models.source import LoadedNetwork
from robustcli.store.checkpoint import why_unreadable

# How deep below the top of a file weights are looked for, such as state_dict or model.state_dict.
_DEPTH = 2
# Mean and deviation of a normalisation saved with the network, by what people call them.
_NORMALISATIONS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))
# Registered by old wide residual networks and never called.
_DEAD = "sub_block1."
_COUNTER = "num_batches_tracked"
_SHOWN = 4


@dataclass(frozen=True)
class Weights:
    """Tensors by name, as a file holds them.

    Args:
        path: the file.
        tensors: by name.
        mean, std: of a normalisation saved beside them and taken away from them, one number for each channel.
        notes: what was done to get here.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    def unwrapped(self, expected: Collection[str] = ()) -> "Weights":
        """Without wrappers' prefixes and without a normalisation around the network.

        Args:
            expected: names that the network itself uses; what begins with them is no wrapper.
        """
        mean = std = None
        tensors, prefix = _without_prefix(self.tensors, expected)
        pair = next(_normalisations(tensors, expected), None)
        if pair is not None:
            mean, std = (tuple(tensors[name].double().flatten().tolist()) for name in pair)
            rest = {name: tensor for name, tensor in tensors.items() if name not in pair}
            tensors, inner = _without_prefix(rest, expected)
            prefix += inner
        note = f"{self.path.name}: '{prefix}' was taken from the beginning of every name"
        return Weights(self.path, tensors, mean, std, (*self.notes, note) if prefix else self.notes)

    @property
    def hint(self) -> str:
        """The end of an error message: what the weights look like, if that is known."""
        words = recognise(self.unwrapped().tensors)
        return f"; the names look like those of {words}" if words else ""


def read_weights(path: Path, key: str | None = None) -> Weights:
    """The weights in a file, whatever dictionaries are around them.

    Args:
        path: of the file.
        key: where in the file, such as "ema" or "model.state_dict", if there are several.

    Raises:
        RobustCliError: the file is missing, not readable as data alone, or holds no weights or several.
    """
    if not path.is_file():
        raise RobustCliError(f"{path}: no such file")
    if is_torchscript(path):
        raise RobustCliError(
            f"{path}: is TorchScript, which brings its own network; evaluate it without --architecture and --weights"
        )
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a broken pickle makes its reader stumble on
        raise RobustCliError(
            f"{path}: cannot be read as plain data ({why_unreadable(error)}); expected weights alone, as "
            "torch.save(model.state_dict(), ...) writes them"
        ) from error
    if isinstance(contents, Mapping) and "format" in contents and "spec" in contents:
        raise RobustCliError(
            f"{path}: written by `robust train`, so it says itself what network it is; evaluate it alone"
        )
    found = dict(_dictionaries(contents, "", _DEPTH))
    if not found:
        keys = ", ".join(map(str, list(contents)[:5])) if isinstance(contents, Mapping) else type(contents).__name__
        raise RobustCliError(f"{path}: holds no weights (found {keys or 'nothing'}); expected a state dict")
    if key is not None and key not in found:
        raise RobustCliError(f"{path}: --weights-key: there are no weights under '{key}'{suggest(key, found)}")
    if key is None and len(found) > 1:
        raise RobustCliError(
            f"{path}: holds several sets of weights; choose one with --weights-key (known: {', '.join(found)})"
        )
    where = next(iter(found)) if key is None else key
    return Weights(path, found[where], notes=(f"{path.name}: weights are those under '{where}'",) if where else ())


def filled(network: nn.Module, weights: Weights, name: str) -> LoadedNetwork:
    """The network with weights of a file in it, and the normalisation that was saved beside them.

    Args:
        network: random weights, replaced.
        weights: as their file holds them.
        name: of the network, for messages.

    Raises:
        RobustCliError: a weight is missing, unknown or of another shape.
    """
    own = weights.unwrapped(network.state_dict().keys())
    notes = fit(network, own, name)
    return LoadedNetwork(
        network=network, mean=own.mean, std=own.std, source=f"saved in {own.path.name}", notes=tuple(notes)
    )


def fit(network: nn.Module, weights: Weights, name: str) -> list[str]:
    """Put weights into a network, all of them or none; what a reader must know of it is returned.

    Args:
        network: keeps its device and its single precision.
        weights: without what is not the network's: `Weights.unwrapped`.
        name: of the network, for messages.

    Raises:
        RobustCliError: a weight is missing, unknown or of another shape; the network is as it was.
    """
    expected = network.state_dict()
    notes = list(weights.notes)
    found = dict(weights.tensors)
    dead = [key for key in found if key.startswith(_DEAD) and key not in expected]
    if dead:
        notes.append(f"{weights.path.name}: {len(dead)} weights under {_DEAD[:-1]} are never used and were left out")
        found = {key: tensor for key, tensor in found.items() if key not in dead}
    # How many batches trained a normalisation matters to training alone, and old files do not say.
    missing = [key for key in expected if key not in found and not key.endswith(_COUNTER)]
    unknown = [key for key in found if key not in expected]
    other = [key for key in found if key in expected and found[key].shape != expected[key].shape]
    if missing or unknown or other:
        problems = [
            *_problem("missing", missing, lambda key: f"{key} {_size(expected[key])}"),
            *_problem("not in the network", unknown, lambda key: f"{key} {_size(found[key])}"),
            *_problem(
                "of another shape", other, lambda key: f"{key} {_size(found[key])}, expected {_size(expected[key])}"
            ),
        ]
        if not missing and not unknown and _is_classifier([(found[key].shape, expected[key].shape) for key in other]):
            theirs, ours = (tensors[other[0]].shape[0] for tensors in (found, expected))
            problems.append(f"so the file knows {theirs} classes, and the data have {ours}")
        lines = "\n".join(f"  {line}" for line in problems)
        raise RobustCliError(f"{weights.path}: does not fit {name}{weights.hint}\n{lines}")
    _require_one_value(network, found, weights.path, name)
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in found.values() if tensor.is_floating_point()}
    if types - {"float32"}:
        notes.append(f"{weights.path.name}: weights in {', '.join(sorted(types))} are evaluated in float32")
    network.load_state_dict({**expected, **found})
    return notes


def _require_one_value(network: nn.Module, found: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Of a weight that a network uses in several places, such as a shared activation's, files have equal copies."""
    places: dict[Tensor, list[str]] = {}
    for key, weight in network.named_parameters(remove_duplicate=False):
        places.setdefault(weight, []).append(key)
    for first, *others in places.values():
        different = [key for key in others if not torch.equal(found[first], found[key])]
        if different:
            raise RobustCliError(
                f"{path}: does not fit {name}: {first} and {different[0]} are one weight there, and in the file they "
                "differ"
            )


def _dictionaries(value: Any, where: str, depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Every dictionary of nothing but tensors, among them weights, by its place."""
    if not isinstance(value, Mapping):
        return
    are_tensors = bool(value) and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    if are_tensors and any(key.rpartition(".")[2] == "weight" for key in value):
        yield where, value
    elif depth:
        for key, item in value.items():
            yield from _dictionaries(item, f"{where}.{key}".lstrip("."), depth - 1)


def _without_prefix(tensors: Mapping[str, Tensor], expected: Collection[str]) -> tuple[Mapping[str, Tensor], str]:
    """Take away the first words that all names share and the network does not use, such as "module." and "model."."""
    known = {name.partition(".")[0] for name in expected}
    prefix = ""
    while len(heads := {name.partition(".")[0] for name in tensors}) == 1 and not heads & known:
        head = f"{heads.pop()}."
        if not all(name.startswith(head) for name in tensors):
            break
        tensors = {name.removeprefix(head): tensor for name, tensor in tensors.items()}
        prefix += head
    return tensors, prefix


def _normalisations(tensors: Mapping[str, Tensor], expected: Collection[str]) -> Iterator[tuple[str, str]]:
    """Names of the mean and deviation of a normalisation, at the top or one level below."""
    for name in tensors:
        for mean, std in _NORMALISATIONS:
            other = name.removesuffix(mean) + std
            if re.fullmatch(rf"(\w+\.)?{mean}", name) and other in tensors and name not in expected:
                yield name, other


def _problem(title: str, keys: Sequence[str], words: Callable[[str], str]) -> Iterator[str]:
    if keys:
        rest = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        yield f"{len(keys)} {title}: {'; '.join(words(key) for key in keys[:_SHOWN])}{rest}"


def _is_classifier(shapes: Sequence[tuple[torch.Size, torch.Size]]) -> bool:
    """Whether pairs of shapes differ as the last weight and bias of networks for other numbers of classes do."""
    outputs = {(one[:1], other[:1]) for one, other in shapes}
    return len(shapes) <= 2 and len(outputs) == 1 and all(one[1:] == other[1:] for one, other in shapes)


def _size(tensor: Tensor) -> str:
    return str(list(tensor.shape))
