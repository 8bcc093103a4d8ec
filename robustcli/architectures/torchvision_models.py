"""Any classifier that torchvision has, by torchvision's name."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torchvision import models

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.borrowed import require_logits
from robustcli.architectures.stems import make_stem_small, said_of
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.types import Stem

# Without an auxiliary classifier they return plain logits in training too. Their initial weights are asked
# for by name, because torchvision warns that the default will change.
_WITH_AUXILIARY = ("googlenet", "inception_v3")


@ARCHITECTURES.register("torchvision", added={"stem": "as_it_is"}, smoke={"model": "shufflenet_v2_x0_5"})
def torchvision(shape: ImageShape, /, *, model: str, stem: Stem = "as_it_is") -> nn.Module:
    """A torchvision classifier, from random weights.

    Most were made for images of 224 pixels and shrink them 32 times, so small images may be refused; see `stem`.
    Vision transformers are built for the size of the images. Dropout and stochastic depth, where a network has them,
    draw from torch's global generator in training.

    Args:
        model: torchvision's name of the network, such as resnet50 or convnext_tiny.
        stem: "small" keeps the resolution of small images: the first convolution gets stride 1 and a kernel of at
            most 3x3, and a pool right after it goes, so that resnet18 is resnet18 of this project. Later strides stay.
            Networks that cut images into patches have no such stem and are refused.

    Reference: Marcel and Rodriguez, "Torchvision the machine-vision package of Torch", ACM Multimedia 2010.
    """
    classifiers = models.list_models(module=models)
    if model not in classifiers:
        if model in models.list_models():
            raise RobustCliError(
                f"architecture.model: torchvision's '{model}' does not classify single images into logits"
                f"{suggest(model, classifiers)}"
            )
        raise RobustCliError(
            f"architecture.model: torchvision has no classifier '{model}'{suggest(model, classifiers)}"
        )
    if shape.channels != 3:
        raise RobustCliError(
            f"architecture.model: torchvision's '{model}' takes images of 3 channels, and the data has "
            f"{shape.channels}; resnet18 and the other networks of this project take any number"
        )
    try:
        # RegNets read their widths from tensors, which a network without memory for its weights has not.
        with torch.device("cpu") if model.startswith("regnet_") else nullcontext():
            network: nn.Module = models.get_model(
                model, weights=None, num_classes=shape.classes, **_settings(model, shape)
            )
        network.to(torch.get_default_device())
        if stem == "small":
            make_stem_small(network, shape, model)
        require_logits(network, shape)
    # What torchvision raises for a size it cannot take depends on the network.
    except (RuntimeError, ValueError, AssertionError) as error:
        raise RobustCliError(
            f"architecture.model: torchvision's '{model}' cannot take images of {shape.height}x{shape.width} "
            f"pixels{said_of(stem)} ({error}); choose another model, or resnet18, which takes any size"
        ) from error
    return network


def _settings(model: str, shape: ImageShape) -> dict[str, Any]:
    if model in _WITH_AUXILIARY:
        return {"aux_logits": False, "init_weights": True}
    if model.startswith("vit_"):
        if shape.height != shape.width:
            raise ValueError("it needs square images")
        return {"image_size": shape.height}
    if model.startswith("maxvit_"):
        return {"input_size": (shape.height, shape.width)}
    return {}
