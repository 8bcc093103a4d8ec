"""Classifiers of torchvision."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torchvision import models

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.borrowed import require_logits
from robustcli.architectures.stems import make_stem_small, stem_text
from robustcli.architectures.weight_names import Settings, Tensors, counts, usual_residual_depth
from robustcli.errors import RobustCliError, suggest
from robustcli.registry.types import Stem

# Built without the auxiliary classifier, so that they return logits in training too. `init_weights` is explicit,
# because torchvision warns that its default will change.
_WITH_AUXILIARY = ("googlenet", "inception_v3")
# ConvNeXts by the blocks of each stage and the channels of the first.
_CONVNEXTS: Mapping[tuple[tuple[int, ...], int], str] = {
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
}
# Residual networks by the first 3x3 convolution of their bottlenecks, or the second of basic blocks: its channels, and
# those that each of them reads.
_RESNETS: Mapping[tuple[int, ...], str] = {
    (64, 64): "resnet{}",
    (128, 128): "wide_resnet{}_2",
    (128, 4): "resnext{}_32x4d",
    (256, 8): "resnext{}_32x8d",
    (256, 4): "resnext{}_64x4d",
}


def suggested(tensors: Tensors) -> Settings | None:
    """Return the name of a residual network or a ConvNeXt."""
    if {"features.1.0.block.0.weight", "classifier.2.weight"} <= set(tensors):
        depths = counts(tensors, r"features\.%d\.\d+\.block\.0\.weight", (1, 3, 5, 7))
        model = _CONVNEXTS.get((depths, tensors["features.0.0.weight"].shape[0]))
    else:
        depth = usual_residual_depth(tensors) if {"fc.weight", "layer1.0.conv2.weight"} <= set(tensors) else None
        form = None if depth is None else _RESNETS.get(tuple(tensors["layer1.0.conv2.weight"].shape[:2]))
        model = None if form is None else form.format(depth)
    return {"model": model} if model in models.list_models(module=models) else None


@ARCHITECTURES.register(
    "torchvision",
    added={"stem": "as_it_is"},
    smoke={"model": "shufflenet_v2_x0_5"},
    suggested_by="suggested",
    title="{model}",
    titles={
        "resnet18": "ResNet-18",
        "resnet34": "ResNet-34",
        "resnet50": "ResNet-50",
        "resnet101": "ResNet-101",
        "resnet152": "ResNet-152",
        "wide_resnet50_2": "WideResNet-50-2",
        "wide_resnet101_2": "WideResNet-101-2",
        "convnext_tiny": "ConvNeXt-T",
        "convnext_small": "ConvNeXt-S",
        "convnext_base": "ConvNeXt-B",
        "convnext_large": "ConvNeXt-L",
        "swin_t": "Swin-T",
        "swin_s": "Swin-S",
        "swin_b": "Swin-B",
    },
)
def torchvision(shape: ImageShape, /, *, model: str, stem: Stem = "as_it_is") -> nn.Module:
    """Classifier of torchvision with random initial weights.

    Most networks are made for images of 224 pixels and shrink them 32 times, so small images may be rejected; see
    `stem`. Vision transformers are built for the size of the images. Dropout and stochastic depth draw from torch's
    global generator in training.

    Args:
        model: name of the network in torchvision, such as resnet50 or convnext_tiny.

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
            f"architecture.model: torchvision's '{model}' takes images of 3 channels, but the data has "
            f"{shape.channels}; resnet18 and the other networks of this project take any number"
        )
    try:
        # RegNets compute widths with tensors, which fails on the meta device.
        with torch.device("cpu") if model.startswith("regnet_") else nullcontext():
            network: nn.Module = models.get_model(
                model, weights=None, num_classes=shape.classes, **_settings(model, shape)
            )
        network.to(torch.get_default_device())
        if stem == "small":
            make_stem_small(network, shape, model)
        require_logits(network, shape)
    # The kind of error for an unsupported size depends on the network.
    except (RuntimeError, ValueError, AssertionError) as error:
        raise RobustCliError(
            f"architecture.model: torchvision's '{model}' cannot take images of {shape.height}x{shape.width} "
            f"pixels{stem_text(stem)} ({error}); choose another model, or resnet18, which takes any size"
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
