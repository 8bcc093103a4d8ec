"""Helpers for networks of other packages: import timm, and check that a network returns logits."""

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError, suggest


def timm_package() -> Any:
    """Return the package timm.

    Raises:
        RobustCliError: timm is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Ignore deprecation warnings inside timm.
            warnings.simplefilter("ignore")
            return importlib.import_module("timm")
    except ImportError as error:
        raise RobustCliError("timm: the package is not installed; run pip install timm") from error


def nearest_in_timm(name: str) -> str:
    """Return the end of an error message with the most similar name in timm, without its list of a thousand names."""
    return suggest(name, timm_package().list_models()).partition(" (known")[0] + "; `timm.list_models()` lists all"


def follow(network: nn.Module, shape: ImageShape) -> Any:
    """Return the output of a network in eval mode for one image on the meta device: only shapes, no computation."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    weightless = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image = torch.empty(1, *shape.size, device="meta")
    network.eval()
    try:
        with torch.no_grad():
            return torch.func.functional_call(network, weightless, (image,))
    finally:
        network.train()


def require_logits(network: nn.Module, shape: ImageShape) -> None:
    """Check that a network returns logits.

    Raises:
        ValueError: the output for one image is not one row of logits.
    """
    out = follow(network, shape)
    if not isinstance(out, Tensor) or out.shape != (1, shape.classes):
        found = f"a tensor of shape {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"one image gives {found}, not {shape.classes} logits")
