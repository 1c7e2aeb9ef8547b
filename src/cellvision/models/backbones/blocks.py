"""The pieces that bottom-ups are made of.

Joins are modules, as in the U-Net: quantisation later puts a scale on what modules give out. For the same reason a
module without weights is used in one place only, where scales differ from those of others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BottomUp(nn.Module):
    """What every bottom-up has besides ``forward(images) -> {level: maps}``.

    Attributes:
        widths: channels of each level that ``forward`` gives, finest first.
        tiles: False where a layer sees the whole image.
        stem_stride: stride of level 2; each further level has twice the one before.
    """

    widths: dict[int, int]
    tiles: bool
    stem_stride: int


class Concatenate(nn.Module):
    """Maps of one size side by side along the channels."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C1 + C2 + ..., H, W) of (B, C1, H, W), (B, C2, H, W), ..."""
        return torch.cat(list(maps), dim=1)


class Add(nn.Module):
    """The sum of two maps."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Element by element."""
        return first + second


class Mean(nn.Module):
    """The mean of two maps."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Element by element."""
        return (first + second) / 2


class Multiply(nn.Module):
    """The product of a map and a weight per channel."""

    def forward(self, maps: Tensor, weights: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W) and (B, C, 1, 1)."""
        return maps * weights


def build_conv(in_channels: int, channels: int, *, kernel_px: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias whose result is of ceil(size / stride) px, for odd kernels.

    Weights start as in He et al. (2015) by the number of inputs, so that maps keep their size of value also behind a
    frozen normalisation, which PyTorch's own start would let fade.
    """
    conv = nn.Conv2d(in_channels, channels, kernel_px, stride=stride, padding=kernel_px // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    return conv
