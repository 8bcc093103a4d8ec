"""Transformers and ConvNeXt against timm, whose weight names public checkpoints use."""

import warnings
from typing import Any

import pytest
import torch
from networks import stirred
from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape

with warnings.catch_warnings():
    # Warnings of timm's imports.
    warnings.simplefilter("ignore")
    timm = pytest.importorskip("timm")


def require_equal(name: str, settings: dict[str, Any], other: nn.Module, side: int) -> None:
    network: nn.Module = ARCHITECTURES.get(name)(ImageShape(3, side, side, 10), **settings)
    network.load_state_dict(stirred(other).state_dict(), strict=True)
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), other(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_tokens", [True, False])
@pytest.mark.parametrize("patch", [16, 4])
def test_xcit(patch: int, norm_tokens: bool) -> None:
    other = timm.models.xcit.Xcit(
        img_size=64, embed_dim=32, depth=2, num_heads=4, eta=1.0, tokens_norm=norm_tokens, num_classes=10
    )
    if patch == 4:
        # The light recipe's adaptation.
        for place in ("patch_embed.proj.0.0", "patch_embed.proj.2.0"):
            other.get_submodule(place).stride = (1, 1)
    settings = {"width": 32, "heads": 4, "depth": 2, "patch": patch, "norm_tokens": norm_tokens}
    require_equal("xcit", settings, other, 64 if patch == 16 else 16)


def test_vit() -> None:
    settings = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 10}
    other = timm.models.vision_transformer.VisionTransformer(**settings)
    require_equal("vit", {"width": 32, "heads": 4, "depth": 2, "patch": 4}, other, 32)


def test_convnext() -> None:
    other = timm.models.convnext.ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), num_classes=10)
    require_equal("convnext", {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32), "patch": 4}, other, 64)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("xcit_nano_12_p16_224", {"width": 128, "heads": 4}),
        ("xcit_tiny_12_p16_224", {"width": 192, "heads": 4}),
        ("xcit_tiny_24_p16_224", {"width": 192, "heads": 4, "depth": 24}),
        ("xcit_small_24_p16_224", {"depth": 24}),
        ("xcit_medium_24_p16_224", {"width": 512, "depth": 24}),
        ("xcit_large_24_p16_224", {"width": 768, "heads": 16, "depth": 24}),
    ],
)
def test_published_sizes_of_xcit(name: str, settings: dict[str, Any]) -> None:
    ARCHITECTURES.get("xcit")
    with torch.device("meta"):
        other = timm.create_model(name)
        network = ARCHITECTURES.get("xcit")(ImageShape(3, 224, 224, 1000), patch=16, **settings)
    shapes = [{key: tensor.shape for key, tensor in one.state_dict().items()} for one in (network, other)]
    assert shapes[0] == shapes[1]
