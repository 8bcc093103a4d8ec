"""Weights saved by another program: read as data, and found among other saved objects."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcli.errors import RobustCliError, in_one_line, suggest
from robustcli.models.plain_pickle import PlainFile, read_plain
from robustcli.models.script import is_torchscript
from robustcli.store import checkpoint

# Maximum depth at which weights are searched in a file, such as state_dict or model.state_dict.
_DEPTH = 4
_SHOWN = 5


@dataclass(frozen=True)
class Weights:
    """Tensors by name, as in a file.

    Args:
        path: the file.
        tensors: tensors by name.
        notes: steps taken to find them.
        others: further sets of weights in the file by their place, if --weights-key does not choose one.
        place: place of these tensors in the file; "" is the top.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    others: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    place: str = ""

    def without(self, prefix: str) -> "Weights":
        """Return these weights without those whose names begin with a prefix, also inside a wrapper."""

        def kept(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return {name: one for name, one in tensors.items() if f".{prefix}" not in f".{name}"}

        others = {place: kept(tensors) for place, tensors in self.others.items()}
        return replace(self, tensors=kept(self.tensors), others=others)

    def candidates(self) -> Iterator["Weights"]:
        """Yield these weights, and each of the others instead, with a note about their place."""
        for place, tensors in {self.place: self.tensors, **self.others}.items():
            note = (f"{self.path.name}: weights are those under '{place}'",) if place else ()
            yield replace(self, tensors=tensors, notes=(*note, *self.notes), others={}, place=place)


def read_weights(path: Path, key: str | None = None) -> Weights:
    """Read the weights in a file, at any depth of dictionaries.

    Args:
        path: the file.
        key: place of the weights in the file, such as "ema" or "model.state_dict", or prefix of their names; None
            uses the only ones, or those that fit the network.

    Raises:
        RobustCliError: the file is missing, cannot be read as data, or contains no weights.
    """
    if not path.is_file():
        raise RobustCliError(
            f"{path}: is a folder; expected a file of weights. Evaluate a run without --architecture and --weights"
            if path.is_dir()
            else f"{path}: no such file"
        )
    if is_torchscript(path):
        raise RobustCliError(
            f"{path}: is TorchScript, which contains its own network; evaluate it without --architecture and --weights"
        )
    file = read_safetensors(path) if path.suffix == ".safetensors" else read_plain(path)
    contents = file.contents
    if checkpoint.is_own(contents):
        raise RobustCliError(
            f"{path}: written by `robust train`, so it names its own network; evaluate it without other options"
        )
    notes: tuple[str, ...] = ()
    if file.skipped:
        notes = (f"{path.name}: objects that are not plain data were skipped unread ({_listed(file.skipped)})",)
    found = dict(_dictionaries(contents, "", _DEPTH))
    # Prefer sets that contain a tensor "weight" over others, such as an optimizer's averages.
    usual = {
        place: tensors
        for place, tensors in found.items()
        if any(name.rpartition(".")[2] == "weight" for name in tensors)
    }
    if not found:
        keys = _listed(map(str, contents)) if isinstance(contents, Mapping) else type(contents).__name__
        raise RobustCliError(
            f"{path}: holds no weights (found {keys or 'nothing'}); expected a state dict, as "
            f"torch.save(model.state_dict(), ...) writes it{''.join(f'; {note}' for note in notes)}"
        )
    if key is not None:
        return _at(path, found, key, notes)
    (place, tensors), *rest = (usual or found).items()
    skipped = _not_tensors(contents, place)
    if skipped:
        notes += (f"{path.name}: entries next to the weights are not tensors and were left out ({_listed(skipped)})",)
    return Weights(path, tensors, notes, dict(rest), place)


def read_safetensors(path: Path) -> PlainFile:
    """Read the tensors of a file in the format safetensors.

    Raises:
        RobustCliError: the package safetensors is missing, or the file is damaged.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise RobustCliError(f"{path}: needs the package safetensors: pip install safetensors") from error
    try:
        return PlainFile(load_file(path), ())
    except (SafetensorError, OSError) as error:
        raise RobustCliError(f"{path}: cannot be read as safetensors: {in_one_line(error)}") from error


def _at(path: Path, found: Mapping[str, Mapping[str, Tensor]], key: str, notes: tuple[str, ...]) -> Weights:
    """Return the weights under a key of the file, or those whose names begin with it."""
    if key in found:
        return Weights(path, found[key], notes, place=key)
    for place, tensors in found.items():
        prefix = f"{key.removeprefix(f'{place}.') if place else key}.".replace("..", ".")
        chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if chosen and (not place or key.startswith(f"{place}.") or len(found) == 1):
            note = f"{path.name}: weights are those whose names begin with '{prefix}'"
            return Weights(path, chosen, (*notes, note), place=place)
    known = [place for place in found if place] or sorted(
        {name.partition(".")[0] for tensors in found.values() for name in tensors}
    )
    raise RobustCliError(f"{path}: --weights-key: there are no weights under '{key}'{suggest(key, known)}")


def _dictionaries(value: Any, where: str, depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every dictionary with tensors by its place; other entries are dropped."""
    if not isinstance(value, Mapping):
        return
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    if tensors:
        yield where, tensors
    for key, item in value.items() if depth else ():
        yield from _dictionaries(item, f"{where}.{key}".lstrip("."), depth - 1)


def _not_tensors(contents: Any, place: str) -> list[str]:
    """Keys of entries among the weights that are neither tensors nor dictionaries."""
    for key in place.split(".") if place else ():
        if key not in contents:
            return []
        contents = contents[key]
    return [str(key) for key, item in contents.items() if not isinstance(item, Tensor | Mapping)]


def _listed(names: Any) -> str:
    shown = list(names)
    rest = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + rest
