"""XCiT: transformers with attention between channels, for ImageNet and for small images."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.convolutions import conv3x3
from robustcli.architectures.transformer_parts import (
    Mlp,
    StochasticDepth,
    draw,
    draw_all,
    late_strides,
    layer_norm,
    require_heads,
)
from robustcli.architectures.weight_names import Settings, Tensors, blocks_of
from robustcli.registry.types import Count, Positive, ProperShare

# Number of sines and cosines per coordinate, and ratio of the longest to the shortest wave length.
_WAVES, _LONGEST = 32, 10_000.0
_CLASS_BLOCKS = 2


class PatchEmbedding(nn.Module):
    """Stem of four 3x3 convolutions with batch norms and GELUs: images -> (n, width, h / patch, w / patch)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        widths = [max(1, width // share) for share in (8, 4, 2, 1)]
        steps = zip((channels, *widths), widths, late_strides(patch, (2, 2, 2, 2)), strict=False)
        parts = [nn.Sequential(conv3x3(*step), nn.BatchNorm2d(step[1])) for step in steps]
        # Public checkpoints count the activations too: proj.0.0.weight, proj.2.0.weight and so on.
        self.proj = nn.Sequential(parts[0], *(layer for part in parts[1:] for layer in (nn.GELU(), part)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class FourierPosition(nn.Module):
    """Positions as a learned linear map of waves along both axes, for any number of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * _WAVES, width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the term (1, width, h, w) to add to a grid of tokens (n, width, h, w)."""
        height, width = tokens.shape[2:]
        rows = _waves(height, tokens.device)[:, :, None].expand(-1, -1, width)
        columns = _waves(width, tokens.device)[:, None, :].expand(-1, height, -1)
        grid = torch.cat([rows, columns])[None].to(self.token_projection.weight.dtype)
        out: Tensor = self.token_projection(grid)
        return out


def _waves(length: int, device: torch.device) -> Tensor:
    """Return sines and cosines in turn (waves, length) at the positions 1..length, scaled to at most 2 pi."""
    position = 2 * math.pi * torch.arange(1, length + 1, device=device) / (length + 1e-6)
    scale = _LONGEST ** (torch.arange(0, _WAVES, 2, device=device) / _WAVES)
    angle = position / scale[:, None]
    return torch.stack([angle.sin(), angle.cos()], 1).flatten(0, 1)


class CrossCovarianceAttention(nn.Module):
    """Attention between the channels of a head, by their cosine over all tokens: (n, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.qkv(x).view(n, tokens, 3, len(self.temperature), -1).permute(2, 0, 3, 4, 1)
        q, k, v = parts.unbind(0)
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        seen = (cosine * self.temperature).softmax(-1) @ v
        out: Tensor = self.proj(seen.permute(0, 3, 1, 2).reshape(n, tokens, width))
        return out


class LocalPatchInteraction(nn.Module):
    """Two depthwise 3x3 convolutions on the grid of tokens, the only layers that connect neighbors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.activation = nn.GELU()
        self.bn = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, height: int) -> Tensor:
        n, tokens, width = x.shape
        grid = x.transpose(1, 2).reshape(n, width, height, tokens // height)
        out: Tensor = self.conv2(self.bn(self.activation(self.conv1(grid))))
        return out.flatten(2).transpose(1, 2)


class XcitBlock(nn.Module):
    """Block of attention between channels, local interaction and MLP, each scaled and added."""

    def __init__(self, width: int, heads: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = CrossCovarianceAttention(width, heads)
        self.norm3 = layer_norm(width)
        self.local_mp = LocalPatchInteraction(width)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width)
        self.gamma1, self.gamma2, self.gamma3 = (nn.Parameter(layer_scale * torch.ones(width)) for _ in range(3))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor, height: int) -> Tensor:
        x = x + self.drop_path(self.gamma1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x), height))
        out: Tensor = x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))
        return out


class ClassAttention(nn.Module):
    """Attention of the class token to all tokens and itself: (n, 1 + tokens, width) -> (n, 1, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        def split(tokens: Tensor) -> Tensor:
            return tokens.view(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

        q, k, v = split(self.q(x[:, :1])), split(self.k(x)), split(self.v(x))
        seen = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        out: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return out


class ClassAttentionBlock(nn.Module):
    """Class attention and an MLP of the class token; the other tokens are added to their normalized values.

    Args:
        norm_tokens: the second norm reads all tokens, which are then doubled, not only the class token.
    """

    def __init__(self, width: int, heads: int, layer_scale: float, norm_tokens: bool) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = ClassAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width)
        self.gamma1, self.gamma2 = (nn.Parameter(layer_scale * torch.ones(width)) for _ in range(2))
        self.norm_tokens = norm_tokens

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm1(x)
        x = x + self.gamma1 * torch.cat([self.attn(u), u[:, 1:]], 1)
        x = self.norm2(x) if self.norm_tokens else torch.cat([self.norm2(x[:, :1]), x[:, 1:]], 1)
        return x + torch.cat([self.gamma2 * self.mlp(x[:, :1]), x[:, 1:]], 1)


class Xcit(nn.Module):
    """XCiT: patches, positions, blocks on the grid of tokens, class attention, linear classifier."""

    def __init__(
        self,
        shape: ImageShape,
        width: int,
        heads: int,
        depth: int,
        patch: int,
        layer_scale: float,
        norm_tokens: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(shape.channels, width, patch)
        self.pos_embed = FourierPosition(width)
        self.blocks = nn.ModuleList(XcitBlock(width, heads, layer_scale, drop_path) for _ in range(depth))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(width, heads, layer_scale, norm_tokens) for _ in range(_CLASS_BLOCKS)
        )
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, shape.classes)
        draw_all(self, (nn.Linear,))
        draw(self.cls_token)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patch_embed(x)
        height = grid.shape[2]
        x = (grid + self.pos_embed(grid)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, height)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.cls_attn_blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


def suggested(tensors: Tensors) -> Settings | None:
    """Width, heads and depth; the size of patches does not show in shapes."""
    names = {"cls_attn_blocks.1.attn.q.weight", "patch_embed.proj.6.0.weight", "blocks.0.attn.temperature"}
    if not names <= set(tensors):
        return None
    heads = tensors["blocks.0.attn.temperature"].shape[0]
    return {"width": tensors["cls_token"].shape[-1], "heads": heads, "depth": blocks_of(tensors)}


@ARCHITECTURES.register("xcit", suggested_by="suggested", smoke={"width": 16, "heads": 2, "depth": 1})
def xcit(
    shape: ImageShape,
    /,
    *,
    width: Count = 384,
    heads: Count = 8,
    depth: Count = 12,
    patch: Literal[4, 8, 16] = 4,
    layer_scale: Positive = 1.0,
    norm_tokens: bool = True,
    drop_path: ProperShare = 0.0,
) -> nn.Module:
    """XCiT: a transformer with attention between channels, at a cost linear in the number of pixels.

    Widths and heads of the published sizes: nano 128 and 4, tiny 192 and 4, S 384 and 8, M 512 and 8, L 768 and 16.
    Images may have any size. The stem and every block have batch norms; stochastic depth draws from torch's global
    generator in training.

    Args:
        width: channels of a token.
        heads: groups of channels that attend to each other; must divide the width.
        depth: blocks before the two blocks of the class token; published 12 or 24.
        patch: side of the patches, in pixels: 16 for ImageNet, 4 for 32 pixels (light recipe). For 8 and 4 the first
            one or two of the four convolutions of the stem lose their stride, so weights fit every patch. (The original
            networks for patches of 8 have a stem of three convolutions.)
        layer_scale: initial value of the learned factors of all branches; published 1 for depth 12, 1e-5 for 24.
        norm_tokens: class blocks normalize all tokens before the MLP, not only the class token; false in the published
            nano networks.
        drop_path: rate of stochastic depth, the same in all blocks; 0.05 in the light recipe.

    Reference: El-Nouby et al., "XCiT: Cross-Covariance Image Transformers", NeurIPS 2021; small patches: Debenedetti
        et al., "A Light Recipe to Train Robust Vision Transformers", SaTML 2023.
    """
    require_heads(width, heads)
    return Xcit(shape, width, heads, depth, patch, layer_scale, norm_tokens, drop_path)
