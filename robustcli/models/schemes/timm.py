"""timm:NAME, a classifier of timm with its published weights or with those of a file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustcli.architectures import ImageShape
from robustcli.architectures.borrowed import nearest_in_timm, timm_package
from robustcli.errors import RobustCliError, in_one_line, suggest
from robustcli.models.schemes import NamedFile, Scheme
from robustcli.models.source import Facts, LoadedNetwork, ModelSource
from robustcli.runtime.network import hub_or_its_cache

# Names of the XCiTs of the light recipe in extensions of timm: RobustBench asks for
_LIGHT_XCIT = re.compile(r"debenedetti20(?:20|22)light_xcit_([sml])(?:12)?_(cifar10|cifar100|imagenet)_linf")
_LIGHT_SIZES = {"s": {"width": 384, "heads": 8}, "m": {"width": 512, "heads": 8}, "l": {"width": 768, "heads": 16}}


@dataclass(frozen=True)
class Timm(ModelSource):
    """A classifier of the package timm with its published weights.

    Args:
        model: name in timm, with a tag of the weights after a dot.
    """

    model: str

    @property
    def name(self) -> str:
        return f"timm:{self.model}"

    @property
    def facts(self) -> Facts:
        known = timm_package().get_pretrained_cfg(self.model)
        return Facts(size=None if known is None else int(known.input_size[-1]))

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        package, reason = timm_package(), None
        try:
            with hub_or_its_cache() as reason:
                network = package.create_model(self.model, pretrained=True)
        except OSError as error:
            raise RobustCliError(
                f"{self.name}: its published weights cannot be downloaded: {reason or in_one_line(error)}; without "
                "network access, --weights names a file of them"
            ) from error
        except RuntimeError as error:
            # timm itself: there are no such weights.
            raise RobustCliError(f"{self.name}: {in_one_line(error)}; --weights names a file of weights") from error
        config = network.pretrained_cfg
        return LoadedNetwork(
            network=network, mean=tuple(config["mean"]), std=tuple(config["std"]), source="of timm's weights"
        )


def find(model: str, weights: str | None) -> ModelSource | NamedFile:
    """Find a network by timm's name.

    Raises:
        RobustCliError: timm is not installed, has no such network or no weights for it, or there is no such file.
    """
    if weights is not None and not Path(weights).is_file():
        raise RobustCliError(f"--weights: {weights}: no such file; timm's tags follow the name after a dot")
    ours = light_xcit(model)
    if weights is not None:
        return NamedFile(path=Path(weights), architecture=ours or {"name": "timm", "model": model})
    if ours is not None:
        raise RobustCliError(f"timm:{model}: timm does not have its weights; --weights names a file of them")
    if not timm_package().is_model(model):
        raise RobustCliError(f"timm:{model}: timm has no such network{nearest_in_timm(model)}")
    try:
        timm_package().get_pretrained_cfg(model)
    except RuntimeError:
        name, _, tag = model.partition(".")
        tags = [known.partition(".")[2] for known in timm_package().list_pretrained(f"{name}.*")]
        raise RobustCliError(f"timm:{model}: timm has no weights '{tag}' of {name}{suggest(tag, tags)}") from None
    return Timm(model)


def light_xcit(model: str) -> Mapping[str, Any] | None:
    """Return the architecture of this project that a name of a published XCiT means, or None for any other name."""
    found = _LIGHT_XCIT.fullmatch(model)
    if found is None:
        return None
    return {"name": "xcit", **_LIGHT_SIZES[found[1]], "depth": 12, "patch": 16 if found[2] == "imagenet" else 4}


SCHEME = Scheme(form="timm:NAME", find=find)
