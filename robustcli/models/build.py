"""Build networks from specs and checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from robustcli.architectures import ImageShape, Network, first_layer
from robustcli.architectures.convnorm import settle_divisors
from robustcli.errors import RobustCliError
from robustcli.models.weights_fit import require_plain_numbers
from robustcli.preprocessors import Preprocessor
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import NetworkCheckpoint

SELECTED_ON_TEST = "the weights were selected on test images, so this number is too good"


def build_network(chosen: MemberSpec, shape: ImageShape, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Build the architecture of a spec, with its normalization as first layer."""
    network = assembled(chosen, shape, mean, std)
    settle_divisors(network, shape)
    return network


def network_for_random_images(chosen: MemberSpec, shape: ImageShape) -> Network:
    """Build the architecture of a spec where no images are at hand, so that any normalization will do."""
    return build_network(chosen, shape, (0.5,) * shape.channels, (0.25,) * shape.channels)


def assembled(chosen: MemberSpec, shape: ImageShape, mean: Sequence[float], std: Sequence[float]) -> Network:
    """The parts of a network put together; the body is made for the images that the preprocessor returns."""
    normalize = first_layer(chosen.options.normalize, tuple(mean), tuple(std))
    preprocess = preprocessor_of(chosen.options.preprocess)
    if preprocess is not None:
        height, width = preprocess.size(shape.height, shape.width)
        shape = replace(shape, height=height, width=width)
    return Network(normalize, instantiate(chosen, shape), preprocess)


def preprocessor_of(chosen: MemberSpec | Literal["none"] | None) -> Preprocessor | None:
    """The preprocessor that was chosen; None if there is none."""
    # The default of options that were not read from a spec is a name.
    if chosen is None or chosen == "none" or chosen.name == "none":
        return None
    preprocess: Preprocessor = instantiate(chosen)
    return preprocess


def network_of(checkpoint: NetworkCheckpoint, device: torch.device, path: Path) -> tuple[ExperimentSpec, Network]:
    """Return spec and network of a checkpoint, in eval mode.

    Args:
        path: path of the checkpoint, for messages.

    Raises:
        RobustCliError: its parts do not fit each other.
    """
    spec = ExperimentSpec.parse(checkpoint.spec, f"the spec inside {path}")
    shape, mean, std = ImageShape(*checkpoint.shape), checkpoint.mean, checkpoint.std
    if not len(mean) == len(std) == shape.channels:
        raise RobustCliError(
            f"{path}: mean has {len(mean)} and std {len(std)} numbers; expected one each of {shape.channels} channels"
        )
    network = build_network(spec.architecture, shape, mean, std)
    own, given = network.state_dict(), checkpoint.weights
    differs = {name for name in own.keys() & given.keys() if own[name].shape != given[name].shape}
    wrong = sorted((own.keys() ^ given.keys()) | differs)
    if wrong:
        raise RobustCliError(
            f"{path}: its weights do not fit the network of its spec ({len(wrong)} are missing in one of them or have "
            f"other shapes, such as {wrong[0]})"
        )
    require_plain_numbers(given, own, path)
    network.load_state_dict(given)
    return spec, network.to(device).eval()
