"""Vision transformers (ViT, DeiT) with learned positions, dropout and stochastic depth."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.transformer_parts import (
    ConvStem,
    Mlp,
    StochasticDepth,
    draw,
    draw_all,
    late_strides,
    layer_norm,
    require_heads,
    rising_rates,
)
from robustcli.architectures.weight_names import Settings, Tensors, blocks_of
from robustcli.errors import RobustCliError
from robustcli.registry.types import Count, ProperShare

# Convolutional stem, the same for every width of the tokens.
_STEM_WIDTHS, _STEM_STRIDES = (48, 96, 192, 384), (2, 2, 2, 2)
_STEM_PATCHES = (1, 2, 4, 8, 16)


class PatchEmbedding(nn.Module):
    """Embedding of patches: images -> one token for every patch (n, tokens, width)."""

    def __init__(self, channels: int, width: int, patch: int, stem: Literal["patch", "conv"]) -> None:
        super().__init__()
        self.proj = (
            nn.Conv2d(channels, width, patch, patch)
            if stem == "patch"
            else ConvStem(channels, _STEM_WIDTHS, late_strides(patch, _STEM_STRIDES), width)
        )

    def forward(self, x: Tensor) -> Tensor:
        grid: Tensor = self.proj(x)
        return grid.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention between tokens, with plain products because fused kernels round differently on each device."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        share = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        out: Tensor = self.dropout(self.proj((share @ v).transpose(1, 2).flatten(2)))
        return out


class Block(nn.Module):
    """Transformer block: x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, heads, dropout)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, dropout)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class Vit(nn.Module):
    """Vision transformer: patches and a class token, positions, blocks, linear classifier of the class token."""

    def __init__(
        self,
        shape: ImageShape,
        width: int,
        heads: int,
        depth: int,
        patch: int,
        stem: Literal["patch", "conv"],
        dropout: float,
        drop_path: float,
        head_bias: float,
    ) -> None:
        super().__init__()
        tokens = (shape.height // patch) * (shape.width // patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + tokens, width))
        self.patch_embed = PatchEmbedding(shape.channels, width, patch, stem)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, rate) for rate in rising_rates(drop_path, depth)))
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, shape.classes)
        draw_all(self, (nn.Linear,))
        draw(self.cls_token)
        draw(self.pos_embed)
        nn.init.constant_(self.head.bias, head_bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1)
        tokens = self.blocks(self.dropout(tokens + self.pos_embed))
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits


# Channels per head in every published ViT; shapes do not determine the number of heads.
_HEAD = 64


def suggested(tensors: Tensors) -> Settings | None:
    """Width, heads, depth and patches, and the form of the stem."""
    names = set(tensors)
    if not {"blocks.0.attn.qkv.weight", "pos_embed", "cls_token", "head.weight"} <= names or "dist_token" in names:
        return None
    width = tensors["cls_token"].shape[-1]
    settings: Settings = {"width": width, "heads": max(1, width // _HEAD), "depth": blocks_of(tensors)}
    if "patch_embed.proj.weight" in tensors:
        return {**settings, "patch": tensors["patch_embed.proj.weight"].shape[-1]}
    if "patch_embed.proj.stem.12.weight" in tensors:
        return {**settings, "patch": 16, "stem": "conv"}
    return None


@ARCHITECTURES.register("vit", suggested_by="suggested", smoke={"width": 16, "heads": 2, "depth": 2})
def vit(
    shape: ImageShape,
    /,
    *,
    width: Count = 384,
    heads: Count = 6,
    depth: Count = 12,
    patch: Count = 4,
    stem: Literal["patch", "conv"] = "patch",
    dropout: ProperShare = 0.0,
    drop_path: ProperShare = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """Vision transformer (ViT, DeiT): attention between patches and a class token.

    Widths and heads of the published sizes, all of depth 12: Ti 192 and 3, S 384 and 6, B 768 and 12. The network fits
    only the size of the images that it is built for. There are no batch norms; dropout and stochastic depth draw from
    torch's global generator in training. Weights are initialized as in DeiT.

    Args:
        width: channels of a token.
        heads: heads of the attention; must divide the width.
        depth: blocks, each an attention and an MLP.
        patch: side of the patches, in pixels; 16 on ImageNet. Must divide the sides of the images.
        stem: "patch" (one convolution as wide as a patch) or "conv" (four 3x3 convolutions with norms over the
            channels, then a linear map; published for patches of 16, with smaller ones the first convolutions lose
            their stride).
        dropout: rate of dropout after adding the positions, after every attention and inside every MLP.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        head_bias: initial biases of the classifier; -log(classes) makes every class unlikely at first.

    Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Touvron et al., "Training data-efficient
        image transformers", ICML 2021; stem: Singh, Croce and Hein, NeurIPS 2023.
    """
    require_heads(width, heads)
    if shape.height % patch or shape.width % patch:
        raise RobustCliError(
            f"architecture.patch: {patch} does not divide images of {shape.height}x{shape.width} pixels; write "
            f"{math.gcd(shape.height, shape.width)} or a divisor of it"
        )
    if stem == "conv" and patch not in _STEM_PATCHES:
        raise RobustCliError(f"architecture.patch: {patch}; the stem 'conv' supports 1, 2, 4, 8 and 16")
    return Vit(shape, width, heads, depth, patch, stem, dropout, drop_path, head_bias)
