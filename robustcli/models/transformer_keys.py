"""What a transformer or a ConvNeXt is, read from the names and shapes of its weights, as timm and others name them."""

import re
from collections.abc import Mapping

from torch import Tensor

# Channels of a head in every published ViT: shapes do not tell how many heads there are.
_HEAD = 64
Settings = dict[str, object]


def recognise_transformer(tensors: Mapping[str, Tensor]) -> tuple[str, Settings] | None:
    """The likely architecture and its settings, or None.

    What shapes do not tell stays out: the patches of an XCiT, whether a nano one normalises its tokens, dropout.

    Args:
        tensors: weights by name, prefixes such as "module." taken away.
    """
    if {"cls_attn_blocks.1.attn.q.weight", "patch_embed.proj.6.0.weight", "blocks.0.attn.temperature"} <= set(tensors):
        heads = tensors["blocks.0.attn.temperature"].shape[0]
        return "xcit", {"width": tensors["cls_token"].shape[-1], "heads": heads, "depth": _blocks(tensors, "")}
    if {"blocks.0.attn.qkv.weight", "pos_embed", "cls_token", "head.weight"} <= set(tensors):
        return _vit(tensors)
    if {"stages.0.blocks.0.conv_dw.weight", "head.fc.weight"} <= set(tensors):
        return _convnext(tensors)
    return None


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
    # The smallest networks of timm have convolutions where others have linear layers.
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
