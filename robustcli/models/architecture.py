"""Weights of another program in an architecture of this project."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from robustcli.architectures import ImageShape
from robustcli.models.schemes import NamedFile
from robustcli.models.source import Facts, LoadedNetwork, ModelSource
from robustcli.models.weights_file import Weights
from robustcli.models.weights_fit import filled
from robustcli.registry.registry import MemberSpec, instantiate
from robustcli.specs.check import to_plain


@dataclass(frozen=True)
class Architecture(ModelSource):
    """Weights of a file in an architecture of this project.

    Args:
        chosen: the architecture.
        weights: contents of the file.
        about: the file, and facts about it if it was found by a name.
    """

    chosen: MemberSpec
    weights: Weights
    about: NamedFile

    @property
    def name(self) -> str:
        return self.about.title or self.weights.path.name

    @property
    def facts(self) -> Facts:
        return replace(self.about, preprocess=self.chosen.options.preprocess)

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        network: nn.Module = instantiate(self.chosen, shape)
        settings = " ".join(f"{key}={value}" for key, value in to_plain(self.chosen.parameters).items())
        words = f"{self.chosen.name}{f' with {settings}' if settings else ''}"
        loaded = filled(network, self.weights, f"{words} for {shape.text}")
        about = self.about
        notes = (*loaded.notes, *about.notes)
        if loaded.mean is None and about.mean is not None:
            # Weights that were saved without their usual normalization.
            loaded = replace(loaded, mean=about.mean, std=about.std, source=f"of {self.name}")
        if about.title is None or about.architecture is None:
            notes += (
                f"the weights fit {words}; settings without weights (activation, strides, padding, input of shortcuts) "
                "are taken from this architecture, and a low clean accuracy may mean that one of them is wrong",
            )
        if self.chosen.options.normalize != "none":
            return replace(loaded, notes=notes)
        if loaded.mean is not None:
            notes += (f"the normalization {loaded.source} was ignored",)
        return replace(loaded, mean=(0.0,), std=(1.0,), source="as architecture.normalize=none says", notes=notes)
