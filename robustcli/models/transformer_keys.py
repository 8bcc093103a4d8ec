"""Recognise a transformer or ConvNeXt by the names and shapes of its weights, as in timm and other packages."""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

# Channels per head in every published ViT; shapes do not determine the number of heads.
_HEAD = 64
Settings = dict[str, object]

# Where torchvision keeps the parts of a block of ConvNeXt, and how timm calls them.
_PARTS = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2", "layer_scale": "gamma"}
_HEADS = {"0": "norm", "2": "fc"}
# Blocks of each stage and channels of the first, by torchvision's names.
_TORCHVISION: Mapping[tuple[tuple[int, ...], int], str] = {
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
}


def recognise_transformer(tensors: Mapping[str, Tensor]) -> tuple[str, Settings] | None:
    """Return the likely architecture and its settings, or None.

    Settings that do not affect shapes are left out: patches of an XCiT, norm_tokens, dropout.

    Args:
        tensors: weights by name, without prefixes such as "module.".
    """
    if {"cls_attn_blocks.1.attn.q.weight", "patch_embed.proj.6.0.weight", "blocks.0.attn.temperature"} <= set(tensors):
        heads = tensors["blocks.0.attn.temperature"].shape[0]
        return "xcit", {"width": tensors["cls_token"].shape[-1], "heads": heads, "depth": _blocks(tensors, "")}
    if {"blocks.0.attn.qkv.weight", "pos_embed", "cls_token", "head.weight"} <= set(tensors):
        return _vit(tensors)
    if {"stages.0.blocks.0.conv_dw.weight", "head.fc.weight"} <= set(tensors):
        return _convnext(tensors)
    if {"features.1.0.block.0.weight", "classifier.2.weight"} <= set(tensors):
        return _torchvision(tensors)
    return None


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


def _torchvision(tensors: Mapping[str, Tensor]) -> tuple[str, Settings] | None:
    depths = [
        sum(re.fullmatch(rf"features\.{2 * stage + 1}\.\d+\.block\.0\.weight", name) is not None for name in tensors)
        for stage in range(4)
    ]
    model = _TORCHVISION.get((tuple(depths), tensors["features.0.0.weight"].shape[0]))
    return None if model is None else ("torchvision", {"model": model})


def _vit(tensors: Mapping[str, Tensor]) -> tuple[str, Settings] | None:
    width = tensors["cls_token"].shape[-1]
    settings: Settings = {"width": width, "heads": max(1, width // _HEAD), "depth": _blocks(tensors, "")}
    if "dist_token" in tensors:
        return None
    if "patch_embed.proj.weight" in tensors:
        return "vit", {**settings, "patch": tensors["patch_embed.proj.weight"].shape[-1]}
    if "patch_embed.proj.stem.12.weight" in tensors:
        return "vit", {**settings, "patch": 16, "stem": "conv"}
    return None


def _convnext(tensors: Mapping[str, Tensor]) -> tuple[str, Settings] | None:
    stages = sum(re.fullmatch(r"stages\.\d+\.blocks\.0\.gamma", name) is not None for name in tensors)
    widths = [tensors[f"stages.{stage}.blocks.0.conv_dw.weight"].shape[0] for stage in range(stages)]
    settings: Settings = {
        "depths": _list([_blocks(tensors, f"stages.{stage}.") for stage in range(stages)]),
        "widths": _list(widths),
    }
    # The smallest networks of timm have convolutions instead of linear layers.
    if tensors["stages.0.blocks.0.mlp.fc1.weight"].dim() != 2:
        return None
    if "stem.0.weight" in tensors and "stem.3.weight" not in tensors:
        return "convnext", {**settings, "patch": tensors["stem.0.weight"].shape[-1]}
    if "stem.stem.3.weight" in tensors:
        return "convnext", {**settings, "patch": 4, "stem": "conv3" if "stem.stem.6.weight" in tensors else "conv2"}
    return None


def _blocks(tensors: Mapping[str, Tensor], stage: str) -> int:
    pattern = re.escape(stage) + r"blocks\.\d+\.mlp\.fc1\.weight"
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def _list(numbers: list[int]) -> str:
    """Without spaces, as a command line takes it."""
    return f"[{','.join(map(str, numbers))}]"
