"""`robust inspect`: contents of the file of a network, without building or running it."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.measuring.network_profile import profile_of
from robustcli.models.build import SELECTED_ON_TEST
from robustcli.models.find import checkpoint_in
from robustcli.models.schemes import NamedFile, scheme_of
from robustcli.models.script import is_torchscript
from robustcli.models.weights_file import Weights, read_weights
from robustcli.models.weights_fit import likely_architecture, saved_normalization
from robustcli.registry.types import exact_text
from robustcli.specs.check import to_plain
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import CheckedCheckpoint
from robustcli.store.files import file_digest

_EVAL = "--data DATA --norm linf --eps 8/255"


def inspect(text: str) -> dict[str, Any]:
    """Return facts about a file as plain data, with the command that evaluates it under `next`.

    Args:
        text: a checkpoint, the folder of a run, a file of weights, TorchScript, or a name of a file.

    Raises:
        RobustCliError: there is no such file, or it contains no network.
    """
    named = scheme_of(text)
    found = None if named is None else named[0].find(named[1], None)
    if found is not None and not isinstance(found, NamedFile):
        raise RobustCliError(f"{text}: does not name a file; `robust eval {text} --attack clean` loads it")
    path = checkpoint_in(Path(text) if found is None else found.path)
    if not path.is_file():
        raise RobustCliError(f"{path}: no such file; expected a checkpoint, weights or TorchScript")
    facts = {"file": str(path), "bytes": path.stat().st_size, "sha256": file_digest(path)}
    if is_torchscript(path):
        return {**facts, "kind": "TorchScript", "next": f"robust eval {text} {_EVAL}"}
    try:
        contents = CheckedCheckpoint.read(path)
    except RobustCliError as error:
        try:
            weights = read_weights(path, None if found is None else found.weights_key)
        except RobustCliError:
            raise error from None
        return {**facts, **_of_weights(weights, text)}
    return {**facts, **_of_checkpoint(contents, path), "next": f"robust eval {text} --attack autoattack"}


def _of_checkpoint(contents: CheckedCheckpoint, path: Path) -> dict[str, Any]:
    spec = ExperimentSpec.parse(contents.spec, f"the spec inside {path}")
    channels, height, width, classes = contents.shape
    return {
        "kind": "checkpoint of robust train",
        "name": spec.name,
        "spec_digest": spec.digest,
        "seed": spec.seed,
        "architecture": {"name": spec.architecture.name, **to_plain(spec.architecture.parameters)},
        "parameters": _parameters(spec, ImageShape(*contents.shape)),
        "images": f"{channels}x{height}x{width}, {classes} classes",
        "data": spec.data.name,
        "defense": spec.defense.name,
        "threat": f"{spec.threat.norm} {exact_text(spec.threat.eps)}",
        "clean_accuracy_on_held_out_images": contents.check.held_out_accuracy,
        "evaluations": list(spec.evaluate),
        "notes": [SELECTED_ON_TEST] if spec.train.allow_test_selection else [],
    }


def _parameters(spec: ExperimentSpec, shape: ImageShape) -> int | None:
    """Number of parameters, without buffers as in all tables; None for a network without a profile."""
    with suppress(RobustCliError):
        return profile_of(spec.architecture, shape).parameters
    return None


def _of_weights(weights: Weights, text: str) -> dict[str, Any]:
    sets = {one.place or "the top": one for one in weights.candidates()}
    options = {place: likely_architecture(one) for place, one in sets.items()}
    words = options.get(weights.place or "the top")
    return {
        "kind": "weights of another program",
        "sets": {place: _about(one.tensors) for place, one in sets.items()},
        "normalization": saved_normalization(weights),
        "likely_architecture": words,
        "notes": list(weights.notes),
        "next": f"robust eval {text} {words or '--architecture NAME'} {_EVAL}",
    }


def _about(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    names = list(tensors)
    return {
        "tensors": len(tensors),
        "values": sum(tensor.numel() for tensor in tensors.values()),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "first": names[0],
        "last": names[-1],
    }
