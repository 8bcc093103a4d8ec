"""Load a network from Python."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustcli.api.inputs import name_of, plain
from robustcli.architectures import ImageShape
from robustcli.errors import RobustCliError
from robustcli.models.build import network_of
from robustcli.models.find import find_model, find_source, normalization_of, read_checkpoint
from robustcli.models.model import prepared, test_images
from robustcli.runtime.device import choose_device
from robustcli.store.results import ModelRequest

# Side of the images, and classes, of an external network for which nothing else is known.
_USUAL_SIZE, _USUAL_CLASSES = 32, 10


def load(
    model: str | PathLike[str],
    *,
    architecture: str | Mapping[str, Any] | None = None,
    weights: str | PathLike[str] | None = None,
    weights_key: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data: str | PathLike[str] | None = None,
    image: tuple[int, int, int] | None = None,
    classes: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load a network with its normalization inside, in eval mode: pixels in [0, 1] -> logits.

    Args:
        model: checkpoint or folder of a run, file of weights (with `architecture`), TorchScript file, or a name such as
            timm:NAME; the same as in `robust eval`.
        architecture: architecture of a file of weights, as its name or as {"name": ..., settings}.
        weights: weights for torchvision:NAME or timm:NAME: a file, or a name in torchvision.
        weights_key: key of the weights in a file that holds several objects.
        mean, std: normalization of an external network; 0 and 1 mean none.
        data: data set, .npz file or folder with labeled images, on which an unknown normalization is found.
        image: channels, height and width of the images of an external network, without `data`. Default: those it was
            made for, or 3x32x32.
        classes: number of classes of an external network, without `data`. Default: that of its weights.
        device: cpu, cuda, cuda:i or auto.

    Raises:
        RobustCliError: there is no such network, its normalization is unknown, or an argument does not concern it.
    """
    chosen = choose_device(str(device), "device")
    if not isinstance(architecture, str | Mapping | None):
        raise RobustCliError(f"architecture: found {type(architecture).__name__}; expected a name or a mapping")
    settings = {"name": architecture} if isinstance(architecture, str) else dict(architecture or {})
    if settings and "name" not in settings:
        raise RobustCliError(f"architecture: found {settings} without a name; expected {{'name': ..., settings}}")
    overrides = [
        f"architecture.{key}={json.dumps(plain(value), default=str)}"
        for key, value in settings.items()
        if key != "name"
    ]
    request = ModelRequest(
        text=name_of("model", model),
        overrides=tuple(overrides),
        architecture=settings.get("name"),
        weights=None if weights is None else name_of("weights", weights),
        weights_key=None if weights_key is None else name_of("weights_key", weights_key),
        mean=_text(mean),
        std=_text(std),
        data=None if data is None else name_of("data", data),
    )
    found = find_source(request)
    if isinstance(found, Path) or data is not None:
        own = {} if data is not None else {"mean": mean, "std": std}
        given = [name for name, value in {**own, "image": image, "classes": classes}.items() if value is not None]
        if given:
            source = "those of the data are used" if data is not None else f"{found} has its own"
            raise RobustCliError(f"{' and '.join(given)}: {source}; leave out")
    if data is not None:
        named = find_model(request)
        return named.load(test_images(named.defaults, chosen), chosen).network
    if isinstance(found, Path):
        return network_of(read_checkpoint(found), chosen, found)[1]
    size = found.facts.size or _USUAL_SIZE
    channels, height, width = (3, size, size) if image is None else image
    shape = ImageShape(channels, height, width, _USUAL_CLASSES if classes is None else classes)
    means, stds = normalization_of(request)
    return prepared(found, shape, chosen, means, stds, None).network


def _text(values: float | Sequence[float] | None) -> str | None:
    """Mean or deviation as on a command line."""
    if values is None:
        return None
    return ",".join(map(str, np.atleast_1d(values).tolist()))
