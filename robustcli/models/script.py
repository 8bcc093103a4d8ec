"""A TorchScript network, written by torch.jit.save."""

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.models.source import BRINGS_ITS_OWN, Facts, LoadedNetwork, ModelSource, reason


@dataclass(frozen=True)
class Script(ModelSource):
    """A TorchScript network, code and weights."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def facts(self) -> Facts:
        return BRINGS_ITS_OWN

    def load(self, shape: ImageShape, device: torch.device) -> LoadedNetwork:
        with warnings.catch_warnings():
            # The deprecation warning does not help the user of an existing file.
            warnings.simplefilter("ignore", FutureWarning)
            try:
                return LoadedNetwork(network=torch.jit.load(str(self.path), map_location=device))  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                raise RobustCliError(f"{self.path}: TorchScript that cannot be loaded: {reason(error)}") from error


def is_torchscript(path: Path) -> bool:
    """Return whether a file was written by torch.jit.save, from the constants for its code in the archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
