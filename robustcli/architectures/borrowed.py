"""Networks of other packages as members: the package imported, and one image followed through what it builds."""

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError, suggest


def timm_package() -> Any:
    """The package timm, imported.

    Raises:
        RobustCliError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Its imports speak to its authors.
            warnings.simplefilter("ignore")
            return importlib.import_module("timm")
    except ImportError as error:
        raise RobustCliError("timm: the package is not installed; pip install 'robustcli[timm]' does it") from error


def nearest_in_timm(name: str) -> str:
    """The end of an error message: the nearest name that timm knows. It has more than a thousand."""
    return suggest(name, timm_package().list_models()).partition(" (known")[0] + "; `timm.list_models()` names all"


def follow(network: nn.Module, shape: ImageShape) -> Any:
    """What one image becomes in a network in eval mode, as shapes alone: nothing is computed."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weightless = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image = torch.empty(1, shape.channels, shape.height, shape.width, device="meta")
    network.eval()
    try:
        with torch.no_grad():
            return torch.func.functional_call(network, weightless, (image,))
    finally:
        network.train()


def require_logits(network: nn.Module, shape: ImageShape) -> None:
    """Follow an image to the end.

    Raises:
        ValueError: at the end there is something else than one row of logits.
    """
    out = follow(network, shape)
    if not isinstance(out, Tensor) or out.shape != (1, shape.classes):
        found = f"numbers of shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"one image gives {found} and not {shape.classes} logits")
