"""Translate torchvision's names of the weights of a ConvNeXt into those of this project."""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

# Where torchvision keeps the parts of a block of ConvNeXt, and how timm calls them.
_PARTS = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2", "layer_scale": "gamma"}
_HEADS = {"0": "norm", "2": "fc"}


def in_own_names(tensors: Mapping[str, Tensor], expected: Collection[str]) -> Mapping[str, Tensor]:
    """Return weights with the names and shapes of this project, if they are torchvision's of an expected ConvNeXt."""
    if "stages.0.blocks.0.conv_dw.weight" not in expected:
        return tensors
    renamed = {_of_convnext(name): tensor for name, tensor in tensors.items()}
    # The factors of the channels have axes for height and width there.
    return {name: one.flatten() if name.endswith(".gamma") else one for name, one in renamed.items()}


def _of_convnext(name: str) -> str:
    """The name of a weight in timm's ConvNeXt, given torchvision's, behind any prefix; other names stay."""
    found = re.fullmatch(r"((?:.*\.)?)features\.(\d)\.(\d+)\.(?:(block\.\d|layer_scale)\b\.?)?(.*)", name)
    if found is None:
        return re.sub(r"(?<![^.])classifier\.([02])\.", lambda match: f"head.{_HEADS[match[1]]}.", name)
    prefix, number, place, part, rest = found.groups()
    stage, is_blocks = divmod(int(number), 2)
    if part in _PARTS and is_blocks:
        return f"{prefix}stages.{stage}.blocks.{place}.{_PARTS[part]}{'.' * bool(rest)}{rest}"
    return f"{prefix}{f'stages.{stage}.downsample' if stage else 'stem'}.{place}.{rest}"
