"""Write and rebuild the network of an exported folder; its model.py calls `rebuild`."""

from pathlib import Path

import torch

from robustcli.architectures import ImageShape, Network
from robustcli.errors import RobustCliError
from robustcli.models.build import assembled
from robustcli.registry.registry import MemberSpec
from robustcli.specs.check import checked_member, checked_settings, to_plain
from robustcli.specs.settings import ARCHITECTURE
from robustcli.specs.yamlfile import read_yaml, to_yaml

SPEC, WEIGHTS = "network.yaml", "weights.pt"


def keep(folder: Path, network: Network, architecture: MemberSpec, shape: ImageShape) -> None:
    """Write a network so that `rebuild` makes it again.

    The weights are a plain state dict on the CPU; mean and std of the normalization are among them.

    Args:
        folder: existing folder.
        network: network whose body is of `architecture`, for images of `shape`.
    """
    spec = {"architecture": to_plain(architecture), "shape": to_plain(shape)}
    (folder / SPEC).write_text(to_yaml(spec), encoding="utf-8")
    # Cloned, because torch.save would store the whole tensor behind a view.
    weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    torch.save(weights, folder / WEIGHTS)


def rebuild(folder: Path) -> Network:
    """Rebuild the network that `keep` wrote.

    Returns:
        Pixels in [0, 1] (n, c, h, w) -> logits (n, k), on the CPU, in eval mode.

    Raises:
        RobustCliError: the spec in the folder is not valid, or the weights are those of another network.
    """
    path = folder / SPEC
    spec = read_yaml(path).value
    if not isinstance(spec, dict) or set(spec) != {"architecture", "shape"}:
        raise RobustCliError(f"{path}: expected only the keys architecture and shape")
    shape = checked_settings(ImageShape, spec["shape"], ("shape",), str(path))
    chosen = checked_member(ARCHITECTURE, spec["architecture"], ("architecture",), str(path))
    # Mean and std, if any, are among the weights.
    network = assembled(chosen, shape, (0.0,) * shape.channels, (1.0,) * shape.channels)
    try:
        network.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise RobustCliError(f"{folder / WEIGHTS}: does not fit the network in {path}: {error}") from error
    return network.eval()
