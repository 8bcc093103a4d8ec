"""Recognise architectures by the names and shapes of their weights.

Public checkpoints of robust networks name their weights in a few ways ("key families"). For those with an architecture
in this project, `recognise` returns command line options as a suggestion, never as a decision: shapes determine depth
and width, but neither the activation nor the padding.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from robustcli.models.transformer_keys import recognise_transformer

_DEPTHS: Mapping[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_STAGES = (1, 2, 3, 4)
_WIDE_STEM = 16
_WIDTH = 64
_ROBUST_ARCH_STEM = 96


def recognise(tensors: Mapping[str, Tensor]) -> str | None:
    """Options of `robust eval` that name the likely architecture of weights, or None.

    Args:
        tensors: weights by name, prefixes such as "module." taken away.
    """
    if "layer.0.block.0.se.fc1.weight" in tensors and "init_conv.weight" in tensors:
        depths = _counts(tensors, r"layer\.%d\.block\.(\d+)\.conv_0\.weight", (0, 1, 2))
        widths = [tensors[f"layer.{stage}.block.0.conv_0.weight"].shape[0] for stage in (0, 1, 2)]
        settings = {"depths": _list(depths), "widths": _list(widths), "stem": tensors["init_conv.weight"].shape[0]}
        return _words("robust_arch_wide_resnet", settings)
    if "layer.0.block.0.conv_0.weight" in tensors:
        return _wide(tensors, r"layer\.0\.block\.(\d+)\.conv_0\.weight", "layer.0.block.0.conv_0.weight", "deepmind")
    if "stem_conv.weight" in tensors and "blocks.2.layer.0.conv1.weight" in tensors:
        return _staged(tensors)
    if "block1.layer.0.conv1.weight" in tensors:
        return _wide(tensors, r"block1\.layer\.(\d+)\.conv1\.weight", "block1.layer.0.conv1.weight", "trades")
    if "layer_0.0.conv_2d_1.weight" in tensors and "conv_2d.weight" in tensors:
        depth = _DEPTHS.get(_counts(tensors, r"layer_%d\.(\d+)\.conv_2d_1\.weight", (0, 1, 2, 3)))
        of_deepmind = {"form": "dm", "activation": "silu", **_width(tensors["conv_2d.weight"])}
        return _words(f"preact_resnet{depth}", of_deepmind) if depth in (18, 34) else None
    if "stages.stage1.stage1-block0.F.a.0.weight" in tensors and "stem.stem.stem.0.weight" in tensors:
        return _robust_arch(tensors)
    if "layer1.0.conv1.weight" in tensors and "conv1.weight" in tensors:
        return _residual(tensors)
    transformer = recognise_transformer(tensors)
    return None if transformer is None else _words(*transformer)


def _residual(tensors: Mapping[str, Tensor]) -> str | None:
    depth = _DEPTHS.get(_counts(tensors, r"layer%d\.(\d+)\.conv1\.weight", _STAGES))
    if depth is None:
        return None
    if depth == 34 and "layer1.0.conv3.weight" in tensors:
        depth = 50
    if "fc.weight" in tensors:
        return _words("torchvision", {"model": f"resnet{depth}"})
    settings = _width(tensors["conv1.weight"])
    if "bn1.weight" in tensors:
        return _words(f"resnet{depth}", settings)
    # Without a norm at the end it is form "a"; "b", the default, and "c" have equal keys.
    form = {} if "bn.weight" in tensors else {"form": "a"}
    return _words(f"preact_resnet{depth}", {**form, **settings}) if depth in (18, 34, 50) else None


def _wide(tensors: Mapping[str, Tensor], block: str, first: str, form: str) -> str:
    """WRN-depth-widen: n blocks per stage give 6 n + 4 layers; the first stage has 16 times `widen` channels."""
    blocks = sum(re.fullmatch(block, name) is not None for name in tensors)
    settings = {"depth": 6 * blocks + 4, "widen": tensors[first].shape[0] // _WIDE_STEM}
    published = {"form": "deepmind", "activation": "silu"} if form == "deepmind" else {}
    if "activation.alpha" in tensors:
        published["activation"] = "pssilu"
    return _words("wide_resnet", {**settings, **published})


def _robust_arch(tensors: Mapping[str, Tensor]) -> str | None:
    """RaResNet-50 or -101, or RaWRN-101-2, whose stages are wider than its stem suggests."""
    depths = _counts(tensors, r"stages\.stage%d\.stage\d-block(\d+)\.F\.a\.0\.weight", _STAGES)
    stem = tensors["stem.stem.stem.0.weight"].shape[0]
    is_wide = tensors["stages.stage1.stage1-block0.F.c.0.weight"].shape[0] > 4 * stem
    names = {(5, 8, 13, 1): "resnet50", (7, 11, 18, 1): "wide_resnet101_2" if is_wide else "resnet101"}
    width = {} if stem == _ROBUST_ARCH_STEM else {"width": stem}
    return _words(f"robust_arch_{names[depths]}", width) if depths in names else None


def _staged(tensors: Mapping[str, Tensor]) -> str:
    """Three stages with separate depths and widths: WRN-34-R and similar, or WRN-A and similar."""
    depths = _counts(tensors, r"blocks\.%d\.layer\.(\d+)\.conv1\.weight", (0, 1, 2))
    is_robust = "blocks.0.layer.0.conv3.weight" in tensors
    last, expansion = ("conv3", 4) if is_robust else ("conv2", 1)
    outputs = [tensors[f"blocks.{stage}.layer.0.{last}.weight"].shape[0] for stage in (0, 1, 2)]
    widths = [channels // (_WIDE_STEM * 2**stage * expansion) for stage, channels in enumerate(outputs)]
    settings: dict[str, object] = {"depths": _list(depths), "widths": _list(widths)}
    if "bn1.weight" in tensors:
        return _words("robust_wide_resnet", settings)
    # The published networks of basic blocks use silu.
    return _words("robust_resnet", settings if is_robust else {**settings, "block": "basic", "activation": "silu"})


def _list(numbers: Iterable[int]) -> str:
    """A list without blanks, as a command line takes it."""
    return f"[{','.join(map(str, numbers))}]"


def _counts(tensors: Iterable[str], pattern: str, stages: Iterable[int]) -> tuple[int, ...]:
    names = list(tensors)
    return tuple(sum(re.fullmatch(pattern % stage, name) is not None for name in names) for stage in stages)


def _width(stem: Tensor) -> dict[str, int]:
    return {} if stem.shape[0] == _WIDTH else {"width": stem.shape[0]}


def _words(name: str, settings: Mapping[str, object]) -> str:
    return " ".join((f"--architecture {name}", *(f"architecture.{key}={value}" for key, value in settings.items())))
