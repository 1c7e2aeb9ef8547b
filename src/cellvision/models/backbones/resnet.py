"""ResNet (He et al., 2015) and ResNeXt (Xie et al., 2016) with the module names of detectron2's weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from cellvision.models.backbones.blocks import Add, BottomUp
from cellvision.models.backbones.norms import build_norm, freeze

_LEVELS = (2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class ResNetBody:
    """The numbers that tell one ResNet from another.

    Attributes:
        blocks: blocks of the stages 2 to 5.
        is_basic: two 3 px convolutions per block in place of a bottleneck.
        groups: of the 3 px convolution in a bottleneck.
        group_width: channels of a group in stage 2; doubled with every stage.
    """

    blocks: tuple[int, int, int, int]
    is_basic: bool = False
    groups: int = 1
    group_width: int = 64


BODIES = {
    "resnet18": ResNetBody(blocks=(2, 2, 2, 2), is_basic=True),
    "resnet34": ResNetBody(blocks=(3, 4, 6, 3), is_basic=True),
    "resnet50": ResNetBody(blocks=(3, 4, 6, 3)),
    "resnet101": ResNetBody(blocks=(3, 4, 23, 3)),
    "resnet152": ResNetBody(blocks=(3, 8, 36, 3)),
    "resnext50_32x4d": ResNetBody(blocks=(3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": ResNetBody(blocks=(3, 4, 23, 3), groups=32, group_width=8),
}
"""ResNets and ResNeXts by name."""


class ResNet(BottomUp):
    """Feature maps of a ResNet by level; stages behind the deepest level asked for are left out.

    Attributes:
        widths: channels of each level asked for.
        tiles: False for group normalisation, which sees the whole image.
        stem_stride: stride of level 2.

    Example:
        >>> import torch
        >>> net = ResNet(body=BODIES["resnet18"], in_channels=2, levels=(2, 3), norm="frozen")
        >>> {level: tuple(found.shape) for level, found in net(torch.zeros(1, 2, 32, 48)).items()}
        {2: (1, 64, 8, 12), 3: (1, 128, 4, 6)}
    """

    def __init__(
        self,
        *,
        body: ResNetBody,
        in_channels: int,
        levels: Collection[int],
        norm: str,
        stem_stride: int = 4,
        freeze_at: int = 0,
        stride_in_1x1: bool = False,
    ) -> None:
        """Make the net; arguments as in ``build_bottom_up``."""
        super().__init__()
        self.stem_stride, self.tiles = stem_stride, norm != "group"
        channels = {level: (64 if body.is_basic else 256) << (level - 2) for level in _LEVELS}
        self.widths = {level: channels[level] for level in _LEVELS if level in levels}
        self.built = [level for level in _LEVELS if level <= max(levels)]
        self.stem = Stem(in_channels, norm=norm, stride=stem_stride // 2)
        for level in self.built:
            source = 64 if level == 2 else channels[level - 1]
            stage = _build_stage(level, body, source, channels[level], norm, stride_in_1x1)
            self.add_module(f"res{level}", stage)
        parts = [self.stem, *(self.get_submodule(f"res{level}") for level in self.built)]
        for part in parts[:freeze_at]:
            freeze(part)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """{level: (B, widths[level], H / stride, W / stride)} of (B, C, H, W) float32, finest first."""
        found, maps = self.stem(images), {}
        for level in self.built:
            found = self.get_submodule(f"res{level}")(found)
            if level in self.widths:
                maps[level] = found
        return maps


class ConvNorm(nn.Conv2d):
    """A convolution without bias with its normalisation inside, as the weights' names want it."""

    def __init__(
        self, in_channels: int, channels: int, kernel_px: int, *, norm: str, stride: int = 1, groups: int = 1
    ) -> None:
        """The result is of ceil(size / stride) px; ``norm`` is one of NORMS."""
        super().__init__(
            in_channels, channels, kernel_px, stride=stride, padding=kernel_px // 2, groups=groups, bias=False
        )
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = build_norm(norm, channels)

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, H / stride, W / stride) of (B, in_channels, H, W)."""
        return self.norm(self._conv_forward(input, self.weight, self.bias))


class Stem(nn.Module):
    """From the image to 64 channels at half the size that ``stride`` leaves."""

    def __init__(self, in_channels: int, *, norm: str, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, 64, 7, norm=norm, stride=stride)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 64, H / stride / 2, W / stride / 2) of (B, C, H, W)."""
        return self.pool(self.relu(self.conv1(images)))


class BasicBlock(nn.Module):
    """Two 3 px convolutions and the maps that came in."""

    def __init__(self, in_channels: int, channels: int, *, norm: str, stride: int) -> None:
        """``stride`` is of the first convolution and, where there is one, of the shortcut's."""
        super().__init__()
        self.shortcut = _build_shortcut(in_channels, channels, norm, stride)
        self.conv1 = ConvNorm(in_channels, channels, 3, norm=norm, stride=stride)
        self.conv2 = ConvNorm(channels, channels, 3, norm=norm)
        self.relu1, self.add, self.relu2 = nn.ReLU(inplace=True), Add(), nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, channels, H / stride, W / stride) of (B, in_channels, H, W)."""
        found = self.conv2(self.relu1(self.conv1(maps)))
        return self.relu2(self.add(found, self.shortcut(maps)))


class Bottleneck(nn.Module):
    """A 3 px convolution between two of 1 px, and the maps that came in."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        width: int,
        groups: int,
        norm: str,
        stride: int,
        stride_in_1x1: bool,
    ) -> None:
        """``width`` channels in ``groups`` inside; the stride is in the first or in the second convolution."""
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _build_shortcut(in_channels, channels, norm, stride)
        self.conv1 = ConvNorm(in_channels, width, 1, norm=norm, stride=first)
        self.conv2 = ConvNorm(width, width, 3, norm=norm, stride=second, groups=groups)
        self.conv3 = ConvNorm(width, channels, 1, norm=norm)
        self.relu1, self.relu2, self.relu3 = (nn.ReLU(inplace=True) for _ in range(3))
        self.add = Add()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, channels, H / stride, W / stride) of (B, in_channels, H, W)."""
        found = self.relu2(self.conv2(self.relu1(self.conv1(maps))))
        return self.relu3(self.add(self.conv3(found), self.shortcut(maps)))


def _build_shortcut(in_channels: int, channels: int, norm: str, stride: int) -> nn.Module:
    """The maps as they came, or brought to the block's channels and size."""
    return nn.Identity() if in_channels == channels else ConvNorm(in_channels, channels, 1, norm=norm, stride=stride)


def _build_stage(
    level: int, body: ResNetBody, in_channels: int, channels: int, norm: str, stride_in_1x1: bool
) -> nn.Sequential:
    """The blocks of one level; the first halves the map, except in stage 2."""
    width = body.groups * body.group_width << (level - 2)
    blocks: list[nn.Module] = []
    for index in range(body.blocks[level - 2]):
        source = channels if index else in_channels
        stride = 2 if level > 2 and index == 0 else 1
        if body.is_basic:
            blocks.append(BasicBlock(source, channels, norm=norm, stride=stride))
            continue
        blocks.append(
            Bottleneck(
                source,
                channels,
                width=width,
                groups=body.groups,
                norm=norm,
                stride=stride,
                stride_in_1x1=stride_in_1x1,
            )
        )
    return nn.Sequential(*blocks)
