"""torchvision:NAME, a classifier of torchvision with its published weights or with those of a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError, suggest
from robustcli.models.schemes import NamedFile, Scheme
from robustcli.models.source import Facts, LoadedNetwork, ModelSource


@dataclass(frozen=True)
class Torchvision(ModelSource):
    """A classifier of torchvision with its published weights.

    Args:
        model: name in torchvision.
        weights: a member of torchvision's enumeration of weights.
    """

    model: str
    weights: Any

    @property
    def name(self) -> str:
        return f"torchvision:{self.model}"

    @property
    def facts(self) -> Facts:
        return Facts(size=int(self.weights.transforms().crop_size[0]))

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        from torchvision import models

        try:
            network = models.get_model(self.model, weights=self.weights)
        except OSError as error:
            raise RobustCliError(
                f"{self.name}: its weights {self.weights.name} cannot be downloaded: {error}; without network access, "
                "--weights names a file of them"
            ) from error
        preset = self.weights.transforms()
        source = f"of torchvision's weights {self.weights.name}"
        return LoadedNetwork(network=network, mean=tuple(preset.mean), std=tuple(preset.std), source=source)


def find(model: str, weights: str | None) -> ModelSource | NamedFile:
    """Find a classifier with published weights or with those of a file, by torchvision's names of both.

    Raises:
        RobustCliError: torchvision has no such classifier, or no such weights of it, or no weights are named.
    """
    if weights is not None and Path(weights).is_file():
        return NamedFile(path=Path(weights), architecture={"name": "torchvision", "model": model})
    from torchvision import models

    classifiers = models.list_models(module=models)
    if model not in classifiers:
        raise RobustCliError(f"torchvision:{model}: torchvision has no such classifier{suggest(model, classifiers)}")
    if weights is None:
        raise RobustCliError(
            f"torchvision:{model}: its weights would be random; --weights names a file, or published ones such as "
            "DEFAULT"
        )
    known = models.get_model_weights(model)
    # By the table of members instead of iteration, because "DEFAULT" is an alias.
    if weights not in known.__members__:
        raise RobustCliError(
            f"--weights: '{weights}' is neither a file nor published weights of torchvision's {model}"
            f"{suggest(weights, known.__members__)}"
        )
    return Torchvision(model, known[weights])


SCHEME = Scheme(form="torchvision:NAME", find=find)
