"""Networks of torchvision and timm, by their names there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from robustcli.architectures import ImageShape
from robustcli.architectures.borrowed import nearest_in_timm, timm_package
from robustcli.errors import RobustCliError, suggest
from robustcli.models.source import LoadedNetwork

# What the XCiTs of the light recipe are called where timm is extended by them: RobustBench asks for
# debenedetti2020light_xcit_s_cifar10_linf, and registered is debenedetti2022light_xcit_s12_cifar10_linf.
_LIGHT_XCIT = re.compile(r"debenedetti20(?:20|22)light_xcit_([sml])(?:12)?_(cifar10|cifar100|imagenet)_linf")
_LIGHT_SIZES = {"s": {"width": 384, "heads": 8}, "m": {"width": 512, "heads": 8}, "l": {"width": 768, "heads": 16}}


@dataclass(frozen=True)
class Torchvision:
    """A classifier of torchvision with its published weights.

    Args:
        model: torchvision's name of it.
        weights: a member of torchvision's enumeration of weights.
    """

    model: str
    weights: Any
    plain_because: str | None = None

    @property
    def name(self) -> str:
        return f"torchvision:{self.model}"

    @property
    def size(self) -> int | None:
        return int(self.weights.transforms().crop_size[0])

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        from torchvision import models

        try:
            network = models.get_model(self.model, weights=self.weights)
        except OSError as error:
            raise RobustCliError(
                f"{self.name}: its weights {self.weights.name} cannot be downloaded: {error}"
            ) from error
        preset = self.weights.transforms()
        source = f"of torchvision's weights {self.weights.name}"
        return LoadedNetwork(network=network, mean=tuple(preset.mean), std=tuple(preset.std), source=source)


@dataclass(frozen=True)
class Timm:
    """A classifier of the package timm with its published weights.

    Args:
        model: timm's name of it, a tag of the weights after a dot.
    """

    model: str
    plain_because: str | None = None

    @property
    def name(self) -> str:
        return f"timm:{self.model}"

    @property
    def size(self) -> int | None:
        return None

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        try:
            network = timm_package().create_model(self.model, pretrained=True)
        except (OSError, RuntimeError) as error:
            raise RobustCliError(f"{self.name}: its published weights cannot be downloaded: {error}") from error
        config = network.pretrained_cfg
        return LoadedNetwork(
            network=network, mean=tuple(config["mean"]), std=tuple(config["std"]), source="of timm's weights"
        )


def published(model: str, weights: str) -> Torchvision:
    """A classifier of torchvision with published weights, by torchvision's names of both.

    Raises:
        RobustCliError: torchvision has no such classifier, or no such weights of it.
    """
    from torchvision import models

    classifiers = models.list_models(module=models)
    if model not in classifiers:
        raise RobustCliError(f"torchvision:{model}: torchvision has no such classifier{suggest(model, classifiers)}")
    known = models.get_model_weights(model)
    # By the table of members and not the iteration: "DEFAULT" is another name of one of them.
    if weights not in known.__members__:
        raise RobustCliError(
            f"--weights: '{weights}' is neither a file nor published weights of torchvision's {model}"
            f"{suggest(weights, known.__members__)}"
        )
    return Torchvision(model, known[weights])


def in_timm(model: str) -> Timm:
    """A network of timm, by timm's name.

    Raises:
        RobustCliError: timm is not installed, or has no such network.
    """
    if not timm_package().is_model(model):
        raise RobustCliError(f"timm:{model}: timm has no such network{nearest_in_timm(model)}")
    return Timm(model)


def light_xcit(model: str) -> Mapping[str, Any] | None:
    """The architecture of this project that a name of a published XCiT means, or None for any other name."""
    found = _LIGHT_XCIT.fullmatch(model)
    if found is None:
        return None
    return {"name": "xcit", **_LIGHT_SIZES[found[1]], "depth": 12, "patch": 16 if found[2] == "imagenet" else 4}
