"""Start training from existing weights: of a run, of a file, or of a model by name."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.features import classifier_of
from robustcli.errors import RobustCliError
from robustcli.models.architecture import Architecture
from robustcli.models.find import find_source
from robustcli.models.schemes import NamedFile
from robustcli.models.source import load_with_own_classes
from robustcli.models.weights_file import read_weights
from robustcli.models.weights_fit import require_plain_numbers
from robustcli.registry.registry import MemberSpec
from robustcli.store.checkpoint import Checkpoint
from robustcli.store.results import ModelRequest

# Prefixes of the normalization's buffers, and of the network after it.
_NORMALIZATION, _BODY = "normalize.", "body."


def start_from(network: nn.Module, text: str, chosen: MemberSpec, shape: ImageShape) -> None:
    """Put weights into a network, except for the normalization and a classifier of other classes.

    The normalization stays that of the data at hand; a classifier that does not fit keeps its random weights.

    Args:
        network: normalization and body.
        text: a checkpoint, the folder of a run, a file of weights of another program, or a name such as timm:resnet50.
        chosen: architecture of the network, to which weights of another program must belong.
        shape: shape of its images, with the number of classes.

    Raises:
        RobustCliError: there are no such weights, or they are of another architecture; nothing is changed.
    """
    try:
        stored = _weights(text, chosen, shape)
    except RobustCliError as error:
        # An option that specs do not have.
        said = str(error).replace("choose one with --weights-key", "write one of them into a file of its own")
        raise RobustCliError(f"train.start_from: {said}") from error
    own = network.state_dict()
    of_normalization = {name: value for name, value in own.items() if name.startswith(_NORMALIZATION)}
    given = {name: value for name, value in stored.items() if not name.startswith(_NORMALIZATION)} | of_normalization
    differs = {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    names = {parameter: name for name, parameter in network.named_parameters()}
    classifier = {names[parameter] for parameter in classifier_of(network).parameters()}
    wrong = sorted((own.keys() ^ given.keys()) | (differs - classifier))
    if wrong and all(name.endswith("running_divisor") for name in wrong):
        raise RobustCliError(
            f"train.start_from: {text}: norm conv_running keeps divisors for images of one size, and those there were "
            "of another; give both specs images of one size, or norm: conv"
        )
    if wrong:
        raise RobustCliError(
            f"train.start_from: {text}: not of the architecture of this spec ({len(wrong)} weights are missing in one "
            f"of them or have other shapes, such as {wrong[0]}); give both specs one architecture"
        )
    kept = classifier if differs else set()
    loaded = {name: own[name] if name in kept else given[name] for name in own}
    require_plain_numbers(loaded, own, Path(text))
    network.load_state_dict(loaded)


def _weights(text: str, chosen: MemberSpec, shape: ImageShape) -> Mapping[str, Tensor]:
    """Weights by the names of a network with its normalization."""
    found = find_source(ModelRequest(text=text))
    if isinstance(found, Path):
        try:
            return Checkpoint.read(found).weights
        except RobustCliError as error:
            try:
                found = Architecture(chosen, read_weights(found), NamedFile(path=found))
            except RobustCliError:
                raise error from None
    body = load_with_own_classes(found, shape, torch.device("cpu")).network
    return {f"{_BODY}{name}": value for name, value in body.state_dict().items()}
