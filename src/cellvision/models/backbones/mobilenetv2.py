"""MobileNetV2 (Sandler et al., 2018) of width 1 without its last, wide convolution."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from cellvision.models.backbones.blocks import Add, BottomUp, build_conv
from cellvision.models.backbones.norms import build_norm, freeze

_SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(how often the channels are widened inside, channels, blocks, stride of the first block)."""

_ENDS = {2: 3, 3: 6, 4: 13, 5: 17}
"""{level: index of the last feature of that stride}."""

_CHANNELS = {2: 24, 3: 32, 4: 96, 5: 320}


class MobileNetV2(BottomUp):
    """Feature maps of a MobileNetV2 by level; features behind the deepest level asked for are left out.

    Attributes:
        widths: channels of each level asked for.
        tiles: False for group normalisation, which sees the whole image.
        stem_stride: stride of level 2.

    Example:
        >>> import torch
        >>> net = MobileNetV2(in_channels=1, levels=(3, 4, 5), norm="batch")
        >>> {level: tuple(found.shape) for level, found in net(torch.zeros(2, 1, 64, 64)).items()}
        {3: (2, 32, 8, 8), 4: (2, 96, 4, 4), 5: (2, 320, 2, 2)}
    """

    def __init__(
        self, *, in_channels: int, levels: Collection[int], norm: str, stem_stride: int = 4, freeze_at: int = 0
    ) -> None:
        """Make the net; arguments as in ``build_bottom_up``."""
        super().__init__()
        self.stem_stride, self.tiles = stem_stride, norm != "group"
        self.widths = {level: _CHANNELS[level] for level in sorted(levels)}
        stem = nn.Sequential(
            build_conv(in_channels, 32, stride=stem_stride // 2), build_norm(norm, 32), nn.ReLU6(inplace=True)
        )
        features: list[nn.Module] = [stem]
        source = 32
        for widening, channels, count, stride in _SETTINGS:
            for index in range(count):
                step = stride if index == 0 else 1
                features.append(InvertedResidual(source, channels, widening=widening, norm=norm, stride=step))
                source = channels
        self.features = nn.ModuleList(features[: _ENDS[max(levels)] + 1])
        if freeze_at:
            for feature in self.features[: {1: 1, **_ENDS}[freeze_at] + 1]:
                freeze(feature)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """{level: (B, widths[level], H / stride, W / stride)} of (B, C, H, W) float32, finest first."""
        ends = {_ENDS[level]: level for level in self.widths}
        found, maps = images, {}
        for index, feature in enumerate(self.features):
            found = feature(found)
            if index in ends:
                maps[ends[index]] = found
        return maps


class InvertedResidual(nn.Module):
    """Widen, one 3 px convolution per channel, narrow; the maps that came in are added where the shape allows."""

    def __init__(self, in_channels: int, channels: int, *, widening: int, norm: str, stride: int) -> None:
        """``widening`` times ``in_channels`` inside; 1 leaves the first convolution out."""
        super().__init__()
        width = widening * in_channels
        steps: list[nn.Module] = []
        if widening != 1:
            steps += [build_conv(in_channels, width, kernel_px=1), build_norm(norm, width), nn.ReLU6(inplace=True)]
        steps += [build_conv(width, width, stride=stride, groups=width), build_norm(norm, width)]
        steps += [nn.ReLU6(inplace=True), build_conv(width, channels, kernel_px=1), build_norm(norm, channels)]
        self.conv = nn.Sequential(*steps)
        self.add = Add() if stride == 1 and in_channels == channels else None

    def forward(self, maps: Tensor) -> Tensor:
        """(B, channels, H / stride, W / stride) of (B, in_channels, H, W)."""
        found = self.conv(maps)
        return found if self.add is None else self.add(maps, found)
