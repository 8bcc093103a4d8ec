"""Classifiers of the package timm."""

from typing import Any

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.borrowed import nearest_in_timm, require_logits, timm_package
from robustcli.architectures.stems import make_stem_small, stem_text
from robustcli.errors import RobustCliError, in_one_line
from robustcli.registry.types import Stem


@ARCHITECTURES.register("timm", requires="timm", smoke={"model": "mobilenetv3_small_050"}, title="{model}")
def timm(shape: ImageShape, /, *, model: str, stem: Stem = "as_it_is") -> nn.Module:
    """Classifier of timm (PyTorch Image Models) with random initial weights.

    Needs timm: pip install timm. The network is built for the channels and classes of the data, and for
    the size of the images if it has a fixed size. Most networks are made for images of 224 pixels and shrink them 32
    times, so small images may be rejected; see `stem`. Dropout and stochastic depth draw from torch's global generator
    in training.

    Args:
        model: name of the network in timm, such as resnet50d or mobilenetv3_large_100.

    Reference: Wightman, "PyTorch Image Models", 2019, doi 10.5281/zenodo.4414861.
    """
    package = timm_package()
    if not package.is_model(model):
        raise RobustCliError(f"architecture.model: timm has no network '{model}'{nearest_in_timm(model)}")
    try:
        network: nn.Module = package.create_model(model, pretrained=False, **_settings(package, model, shape))
        if stem == "small":
            make_stem_small(network, shape, model)
        require_logits(network, shape)
    except RobustCliError:
        raise
    # The many networks of timm raise many kinds of errors for unsupported sizes and channels.
    except Exception as error:
        raise RobustCliError(
            f"architecture.model: timm's '{model}' cannot take {shape.text}{stem_text(stem)} "
            f"({in_one_line(error)}); choose another model, or resnet18, which takes any size"
        ) from error
    return network


def _settings(package: Any, model: str, shape: ImageShape) -> dict[str, Any]:
    settings: dict[str, Any] = {"num_classes": shape.classes, "in_chans": shape.channels}
    published = package.get_pretrained_cfg(model)
    if published is not None and published.fixed_input_size:
        settings["img_size"] = (shape.height, shape.width)
    return settings
