"""Attention for the U-Net: on the skips (gate), on every block (se, cbam), or at the deepest level (self)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.models.unet.blocks import Add, Cat, Mul

ATTENTIONS = ("none", "gate", "se", "cbam", "self")
LOCAL_ATTENTIONS = ("none", "gate")
"""Those whose result at a pixel does not depend on the whole image."""


class AttentionGate(nn.Module):
    """Skip weighted between 0 and 1 at every pixel by what the deeper levels saw there.

    Oktay et al., "Attention U-Net" (2018): additive attention. It starts almost fully open, so that early training
    is that of a plain U-Net. Local: each pixel's weight depends on that pixel's two vectors only.
    """

    def __init__(self, width: int) -> None:
        """For skip and gating map of ``width`` channels each."""
        super().__init__()
        inner = max(width // 2, 1)
        self.from_skip = nn.Conv2d(width, inner, 1, bias=False)
        self.from_deep = nn.Conv2d(width, inner, 1)
        self.add = Add()
        self.relu = nn.ReLU(inplace=True)
        self.psi = nn.Conv2d(inner, 1, 1)
        self.sigmoid = nn.Sigmoid()
        self.mul = Mul()
        nn.init.constant_(self.psi.bias, 2.0)  # type: ignore[arg-type]

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        """(B, width, H, W) from two of that shape."""
        shared = self.relu(self.add(self.from_skip(skip), self.from_deep(deep)))
        return self.mul(skip, self.sigmoid(self.psi(shared)))


class SqueezeExcite(nn.Module):
    """Every channel weighted between 0 and 1 by the means of all channels over the image.

    Hu et al., "Squeeze-and-Excitation Networks" (2018), reduction 4 (16 leaves one channel at our widths).
    """

    def __init__(self, width: int) -> None:
        """For maps of ``width`` channels."""
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.excite = _build_bottleneck(width)
        self.sigmoid = nn.Sigmoid()
        self.mul = Mul()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, H, W) of the same shape."""
        return self.mul(maps, self.sigmoid(self.excite(self.pool(maps))))


class Cbam(nn.Module):
    """Channels weighted by their mean and maximum over the image, then pixels by those over the channels.

    Woo et al., "CBAM: Convolutional Block Attention Module" (2018), reduction 4, 7 px spatial convolution.
    """

    def __init__(self, width: int) -> None:
        """For maps of ``width`` channels."""
        super().__init__()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.max = nn.AdaptiveMaxPool2d(1)
        self.excite = _build_bottleneck(width)
        self.add = Add()
        self.channel_sigmoid = nn.Sigmoid()
        self.channel_mul = Mul()
        self.cat = Cat()
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.spatial_sigmoid = nn.Sigmoid()
        self.spatial_mul = Mul()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, H, W) of the same shape."""
        weights = self.add(self.excite(self.mean(maps)), self.excite(self.max(maps)))
        maps = self.channel_mul(maps, self.channel_sigmoid(weights))
        summary = self.cat(maps.mean(1, keepdim=True), maps.amax(1, keepdim=True))
        return self.spatial_mul(maps, self.spatial_sigmoid(self.spatial(summary)))


class SelfAttention(nn.Module):
    """One transformer block: every place of the map looks at a grid of at most 16 x 16 places that cover the image.

    Vaswani et al., "Attention Is All You Need" (2017), at the bottleneck as in TransUNet (Chen et al. 2021). Keys and
    values are averaged to the grid as in PVTv2 (Wang et al. 2022), so that memory grows with the number of places and
    not with its square: 256 numbers per place and head, 16 MiB for a 512 px image at stride 8 with 4 heads, against
    256 MiB. Position enters by a depthwise convolution (Chu et al. 2021), which suits any image size.
    """

    GRID = 16

    def __init__(self, width: int) -> None:
        """For maps of ``width`` channels; 4 heads where that divides the width, else 2 or 1."""
        super().__init__()
        self.heads = math.gcd(width, 4)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, H, W) of the same shape."""
        maps = maps + self.position(maps)
        normed = self.norm(maps.permute(0, 2, 3, 1))
        grid = pool_to_grid(normed.permute(0, 3, 1, 2), self.GRID).flatten(2).transpose(1, 2)
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = tokens + self._attend(normed.flatten(1, 2), grid)
        tokens = tokens + self.feed(tokens)
        return tokens.transpose(1, 2).reshape(maps.shape)

    def _attend(self, tokens: Tensor, grid: Tensor) -> Tensor:
        query = self._split(self.to_query(tokens))
        key, value = (self._split(half) for half in self.to_key_value(grid).chunk(2, dim=-1))
        found = F.scaled_dot_product_attention(query, key, value)
        return self.mix(found.transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, heads, N, width / heads) of (B, N, width)."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def pool_to_grid(maps: Tensor, side: int) -> Tensor:
    """Adaptive average pooling to ``side`` x ``side``, written as two products so that it exports at any size.

    ``F.adaptive_avg_pool2d`` gives the same but exports only where the image's size is known beforehand.

    Args:
        maps: (B, C, H, W).
        side: cells of the grid per side.

    Returns:
        (B, C, side, side); a map with fewer places than the grid repeats them.
    """
    rows = _build_averages(maps.shape[-2], side, maps)
    columns = _build_averages(maps.shape[-1], side, maps)
    return rows @ maps @ columns.transpose(0, 1)


def _build_averages(length: int, side: int, like: Tensor) -> Tensor:
    """(side, length): row i averages the places floor(i length / side) .. ceil((i + 1) length / side)."""
    cell = torch.arange(side, device=like.device).unsqueeze(1)
    place = torch.arange(length, device=like.device).unsqueeze(0)
    first = cell * length // side
    last = ((cell + 1) * length + side - 1) // side
    inside = ((place >= first) & (place < last)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def build_block_attention(attention: str, width: int) -> nn.Module:
    """What follows every convolution block of ``width`` channels: squeeze-excitation, CBAM, or nothing."""
    if attention == "se":
        return SqueezeExcite(width)
    return Cbam(width) if attention == "cbam" else nn.Identity()


def _build_bottleneck(width: int) -> nn.Sequential:
    inner = max(width // 4, 1)
    return nn.Sequential(nn.Conv2d(width, inner, 1), nn.ReLU(inplace=True), nn.Conv2d(inner, width, 1))
