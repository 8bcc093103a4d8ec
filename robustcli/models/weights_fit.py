"""Load weights of a file into a network: strip prefixes of wrappers, and load all weights or none."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcli.errors import RobustCliError
from robustcli.models.convnext_names import in_own_names
from robustcli.models.key_families import recognize
from robustcli.models.source import ClassesDiffer, LoadedNetwork
from robustcli.models.weights_file import Weights

# Common names of mean and std of a normalization saved with the network.
_NORMALIZATIONS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))
# Registered by old wide residual networks but never used.
_DEAD = "sub_block1."
_COUNTER = "num_batches_tracked"
# Name parts that torch.compile and DataParallel insert, also in the middle.
_WRAPPERS = ("_orig_mod", "module")
_SHOWN = 4
# Largest pixel of images in bytes.
_LEVELS = 255


@dataclass(frozen=True)
class _Unwrapped:
    """Weights without wrappers around the network.

    Args:
        tensors: tensors by the network's names.
        prefix: beginning of every name that was removed.
        mean, std: a normalization saved next to them, one number per channel.
        notes: steps taken.
    """

    tensors: Mapping[str, Tensor]
    prefix: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


def filled(network: nn.Module, weights: Weights, name: str) -> LoadedNetwork:
    """Load weights of a file into a network, with the normalization that was saved next to them.

    Args:
        network: network with random weights, which are replaced.
        weights: weights as in their file; among several sets, the one that fits is used.
        name: name of the network, for messages.

    Raises:
        ClassesDiffer: only the number of classes differs.
        RobustCliError: a weight is missing, unknown or of another shape, or several different sets fit.
    """
    expected = _tensors_of(network)
    candidates = [*weights.candidates()]
    fitting = [one for one in candidates if not _problems(_unwrapped(one, expected).tensors, expected)]
    different = [one for one in fitting[1:] if not _is_equal(one.tensors, fitting[0].tensors)]
    if different:
        places = ", ".join(one.place or "the top" for one in fitting)
        raise RobustCliError(
            f"{weights.path}: holds several sets of weights that fit {name}; choose one with --weights-key "
            f"(known: {places})"
        )
    chosen = (fitting or candidates)[0]
    own = _unwrapped(chosen, expected)
    notes = _load(network, own, chosen.path, name)
    source = f"saved in {chosen.path.name}"
    return LoadedNetwork(network=network, mean=own.mean, std=own.std, source=source, notes=tuple(notes))


def hint_of(weights: Weights) -> str:
    """Return the end of an error message with the likely architecture, if known."""
    return _hint(likely_architecture(weights))


def _hint(words: str | None) -> str:
    return f"; the names look like those of {words}" if words else ""


def likely_architecture(weights: Weights) -> str | None:
    """Return options for the likely architecture of the weights; None if unknown."""
    return recognize(_unwrapped(weights, {}).tensors)


def saved_normalization(weights: Weights) -> dict[str, list[float]] | None:
    """Return mean and standard deviation that were saved next to the weights; None if there are none."""
    own = _unwrapped(weights, {})
    return None if own.mean is None or own.std is None else {"mean": list(own.mean), "std": list(own.std)}


def _unwrapped(weights: Weights, expected: Mapping[str, Tensor]) -> _Unwrapped:
    """Weights by the network's own names.

    Args:
        expected: the network's tensors by name; prefixes of these names belong to no wrapper.
    """
    file, notes = weights.path.name, weights.notes
    tensors, taken_out = _without_words(in_own_names(weights.tensors, expected), expected)
    if taken_out:
        notes += (f"{file}: {taken_out} was removed from the names",)
    around = _stripped(tensors, expected)
    if not expected or not _problems(around.tensors, expected):
        if around.prefix:
            notes += (f"{file}: '{around.prefix}' was removed from the beginning of every name",)
        return _in_unit_range(replace(around, notes=notes), file)
    prefixes = _prefixes(tensors, expected)
    if len(prefixes) > 1 and "" not in prefixes:
        raise RobustCliError(
            f"{weights.path}: holds several sets of weights that fit, under {', '.join(prefixes)}; choose one with "
            "--weights-key"
        )
    if not prefixes or "" in prefixes:
        return replace(around, notes=notes)
    (prefix,) = prefixes
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    outside = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    rest = _stripped(outside, expected)
    unused = {id(tensor) for tensor in rest.tensors.values()}
    left = [name for name, tensor in outside.items() if id(tensor) in unused and not name.endswith(_COUNTER)]
    note = f"{file}: weights are those whose names begin with '{prefix}'"
    if left:
        note += f"; {len(left)} {'others were' if len(left) > 1 else 'other was'} ignored ({_listed(left)})"
    return _in_unit_range(replace(rest, tensors=inside, notes=(*notes, note)), file)


def _in_unit_range(found: _Unwrapped, file: str) -> _Unwrapped:
    """Convert a normalization of pixels in 0..255 to pixels in [0, 1], whose mean is at most 1."""
    if found.mean is None or found.std is None or max(found.mean) <= 1:
        return found
    mean, std = (tuple(value / _LEVELS for value in values) for values in (found.mean, found.std))
    note = f"{file}: its normalization is that of pixels in 0..255, so mean and std were divided by 255"
    return replace(found, mean=mean, std=std, notes=(*found.notes, note))


def _stripped(tensors: Mapping[str, Tensor], expected: Collection[str]) -> _Unwrapped:
    """Strip prefixes that all names share, and a normalization around the network."""
    tensors, prefix = _without_prefix(tensors, expected)
    pair = next(_normalizations(tensors, expected), None)
    if pair is None:
        return _Unwrapped(tensors, prefix)
    mean, std = (tuple(tensors[name].double().flatten().tolist()) for name in pair)
    rest = {name: tensor for name, tensor in tensors.items() if name not in pair}
    tensors, inner = _without_prefix(rest, expected)
    return _Unwrapped(tensors, prefix + inner, mean, std)


def _without_words(tensors: Mapping[str, Tensor], expected: Collection[str]) -> tuple[Mapping[str, Tensor], str]:
    """Remove name parts of wrappers, unless the network itself has them."""
    known = {word for name in expected for word in name.split(".")}
    found = [word for word in _WRAPPERS if word not in known and any(word in name.split(".")[1:] for name in tensors)]
    if not found:
        return tensors, ""
    renamed = {".".join(word for word in name.split(".") if word not in found): one for name, one in tensors.items()}
    # Two names must not become the same.
    return (renamed, " and ".join(f"'{word}.'" for word in found)) if len(renamed) == len(tensors) else (tensors, "")


def _prefixes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return prefixes with the whole network; only those with equal shapes, if there are any."""
    needed = [name for name in expected if not name.endswith(_COUNTER)]
    if not needed:
        return []
    first = needed[0]
    ends = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    complete = [prefix for prefix in ends if all(f"{prefix}{name}" in tensors for name in needed)]
    fitting = [
        prefix for prefix in complete if all(tensors[prefix + name].shape == expected[name].shape for name in needed)
    ]
    return fitting or complete


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without extra state of modules."""
    return {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def _problems(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Names that are missing, unknown or of another shape."""
    return [name for names in _differences(found, expected) for name in names]


def _differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    # num_batches_tracked matters only to training, and is missing in old files.
    missing = [key for key in expected if key not in found and not key.endswith(_COUNTER)]
    unknown = [key for key in found if key not in expected and not key.startswith(_DEAD)]
    other = [key for key in found if key in expected and found[key].shape != expected[key].shape]
    return missing, unknown, other


def _load(network: nn.Module, weights: _Unwrapped, path: Path, name: str) -> list[str]:
    """Load all weights into a network, or none; return notes for the reader."""
    expected = _tensors_of(network)
    notes = list(weights.notes)
    found = dict(weights.tensors)
    missing, unknown, other = _differences(found, expected)
    if missing or unknown or other:
        problems = [
            *_problem("missing", missing, lambda key: f"{key} {_size(expected[key])}"),
            *_problem("not in the network", unknown, lambda key: f"{key} {_size(found[key])}"),
            *_problem(
                "of another shape", other, lambda key: f"{key} {_size(found[key])}, expected {_size(expected[key])}"
            ),
        ]
        head = f"{path}: does not fit {name}{_hint(recognize(found))}"
        if not missing and not unknown and _is_classifier([(found[key].shape, expected[key].shape) for key in other]):
            theirs, ours = (tensors[other[0]].shape[0] for tensors in (found, expected))
            problems.append(f"so the file knows {theirs} classes, and the data have {ours}")
            raise ClassesDiffer("\n  ".join([head, *problems]), theirs)
        raise RobustCliError("\n  ".join([head, *problems]))
    dead = [key for key in found if key not in expected]
    if dead:
        notes.append(f"{path.name}: {len(dead)} weights under {_DEAD[:-1]} are never used and were left out")
        found = {key: tensor for key, tensor in found.items() if key in expected}
    require_plain_numbers(found, expected, path)
    _require_one_value(network, found, path, name)
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in found.values() if tensor.is_floating_point()}
    if types - {"float32"}:
        notes.append(f"{path.name}: weights in {', '.join(sorted(types))} are evaluated in float32")
    network.load_state_dict({**network.state_dict(), **found})
    return notes


def require_plain_numbers(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Raise for tensors that copying would change: quantized, sparse, empty, integer or complex."""
    for key, tensor in found.items():
        advice = None
        if tensor.is_meta:
            advice = "on the device meta, so it has no values; save the weights after they are loaded"
        elif tensor.is_quantized:
            advice = "quantized; dequantize the weights, or evaluate the quantized network itself with --model"
        elif tensor.layout != torch.strided:
            advice = "sparse; save it with .to_dense()"
        elif key.endswith(_COUNTER):
            continue
        elif tensor.is_complex() and not expected[key].is_complex():
            advice = f"{_type(tensor)}, and the network's is {_type(expected[key])}"
        elif expected[key].is_floating_point() and not tensor.is_floating_point():
            advice = (
                f"{_type(tensor)}, but the network's is {_type(expected[key])}: integers lack their "
                "scale; dequantize the weights first"
            )
        if advice is not None:
            raise RobustCliError(f"{path}: {key} is {advice}")


def _require_one_value(network: nn.Module, found: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Raise if a weight that the network uses in several places has different values in the file."""
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


def _without_prefix(tensors: Mapping[str, Tensor], expected: Collection[str]) -> tuple[Mapping[str, Tensor], str]:
    """Strip first name parts that all names share and the network does not use, such as "module." and "model."."""
    known = {name.partition(".")[0] for name in expected}
    prefix = ""
    while len(heads := {name.partition(".")[0] for name in tensors}) == 1 and not heads & known:
        head = f"{heads.pop()}."
        if not all(name.startswith(head) for name in tensors):
            break
        tensors = {name.removeprefix(head): tensor for name, tensor in tensors.items()}
        prefix += head
    return tensors, prefix


def _normalizations(tensors: Mapping[str, Tensor], expected: Collection[str]) -> Iterator[tuple[str, str]]:
    """Names of the mean and deviation of a normalization, at the top or one level below."""
    for name in tensors:
        for mean, std in _NORMALIZATIONS:
            other = name.removesuffix(mean) + std
            if re.fullmatch(rf"(\w+\.)?{mean}", name) and other in tensors and name not in expected:
                yield name, other


def _problem(title: str, keys: Sequence[str], words: Callable[[str], str]) -> Iterator[str]:
    if keys:
        rest = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        yield f"{len(keys)} {title}: {'; '.join(words(key) for key in keys[:_SHOWN])}{rest}"


def _is_classifier(shapes: Sequence[tuple[torch.Size, torch.Size]]) -> bool:
    """Return whether shapes differ like the last weight and bias of networks with other numbers of classes."""
    outputs = {(one[:1], other[:1]) for one, other in shapes}
    return len(shapes) <= 2 and len(outputs) == 1 and all(one[1:] == other[1:] for one, other in shapes)


def _is_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two sets of weights are equal, in any order."""
    return one.keys() == other.keys() and all(
        a is b or (_is_dense(a) and _is_dense(b) and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in ((one[key], other[key]) for key in one)
    )


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _size(tensor: Tensor) -> str:
    return str(list(tensor.shape))
