"""VoVNetV2 (Lee and Park, 2020): one-shot aggregation blocks with an effective squeeze-and-excitation each.

Module names hold a "/" because the published weights do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from cellvision.models.backbones.blocks import Add, BottomUp, Concatenate, Multiply, build_conv
from cellvision.models.backbones.norms import build_norm, freeze

_LEVELS = (2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class VoVNetBody:
    """The numbers that tell one VoVNet from another.

    Attributes:
        stem: channels of the three first convolutions.
        widths: channels inside the blocks of stages 2 to 5.
        channels: channels that stages 2 to 5 give.
        layers: convolutions per block.
        blocks: blocks per stage.
        depthwise: whether a convolution is split into one per channel and one per pixel.
    """

    stem: tuple[int, int, int] = (64, 64, 128)
    widths: tuple[int, int, int, int] = (128, 160, 192, 224)
    channels: tuple[int, int, int, int] = (256, 512, 768, 1024)
    layers: int = 5
    blocks: tuple[int, int, int, int] = (1, 1, 1, 1)
    depthwise: bool = False


_SLIM = VoVNetBody(widths=(64, 80, 96, 112), channels=(112, 256, 384, 512), layers=3)
BODIES = {
    "vovnet19_slim_dw": replace(_SLIM, stem=(64, 64, 64), depthwise=True),
    "vovnet19_dw": VoVNetBody(stem=(64, 64, 64), layers=3, depthwise=True),
    "vovnet19_slim": _SLIM,
    "vovnet19": VoVNetBody(layers=3),
    "vovnet39": VoVNetBody(blocks=(1, 1, 2, 2)),
    "vovnet57": VoVNetBody(blocks=(1, 1, 4, 3)),
    "vovnet99": VoVNetBody(blocks=(1, 3, 9, 3)),
}
"""Every published VoVNetV2 by name."""


class VoVNet(BottomUp):
    """Feature maps of a VoVNetV2 by level.

    Stages coarser than the coarsest level asked for are not made: nothing would train them.

    Attributes:
        widths: channels of each level asked for.
        tiles: False, because squeeze-and-excitation sees the whole image.
        stem_stride: stride of level 2.

    Example:
        >>> net = VoVNet(body=BODIES["vovnet19_slim_dw"], in_channels=1, levels=(3, 5), norm="batch")
        >>> {level: tuple(found.shape) for level, found in net(torch.zeros(2, 1, 64, 96)).items()}
        {3: (2, 256, 8, 12), 5: (2, 512, 2, 3)}
    """

    tiles = False

    def __init__(
        self,
        *,
        body: VoVNetBody,
        in_channels: int,
        levels: Collection[int],
        norm: str,
        stem_stride: int = 4,
        deformable: bool = False,
        freeze_at: int = 0,
    ) -> None:
        """Make the net; arguments as in ``build_bottom_up``."""
        super().__init__()
        self.stem_stride = stem_stride
        self.widths = {level: body.channels[level - 2] for level in _LEVELS if level in levels}
        self.stages = tuple(level for level in _LEVELS if level <= max(levels))
        self.stem = _build_stem(body, in_channels, norm, first_stride=stem_stride // 2)
        sources = (body.stem[-1], *body.channels)
        for level, (source, channels) in zip(self.stages, pairwise(sources), strict=False):
            stage = _build_stage(level, body, source, channels, norm, deformable and level > 2)
            self.add_module(f"stage{level}", stage)
        parts = [self.stem, *(self.get_submodule(f"stage{level}") for level in self.stages)]
        for part in parts[:freeze_at]:
            freeze(part)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """{level: (B, widths[level], H / stride, W / stride)} of (B, C, H, W) float32, finest first."""
        found, maps = self.stem(images), {}
        for level in self.stages:
            found = self.get_submodule(f"stage{level}")(found)
            if level in self.widths:
                maps[level] = found
        return maps


class AggregationBlock(nn.Module):
    """A chain of convolutions whose results are all joined once, at the end, and weighed per channel."""

    def __init__(
        self, *, reduction: nn.Module, layers: Sequence[nn.Module], concat: nn.Module, channels: int, adds: bool
    ) -> None:
        """Put a block together.

        Args:
            reduction: between the maps that come in and the first layer.
            layers: one behind the other.
            concat: makes ``channels`` of the maps that came in, unreduced, and the results of all layers.
            channels: of the result.
            adds: whether the maps that came in are added to the result.
        """
        super().__init__()
        self.conv_reduction = reduction
        self.layers = nn.ModuleList(layers)
        self.join = Concatenate()
        self.concat = concat
        self.ese = EffectiveSqueeze(channels)
        self.add = Add() if adds else None

    def forward(self, maps: Tensor) -> Tensor:
        """(B, channels, H, W) of (B, C, H, W)."""
        found = self.conv_reduction(maps)
        parts = [maps]
        for layer in self.layers:
            found = layer(found)
            parts.append(found)
        weighed = self.ese(self.concat(self.join(parts)))
        return weighed if self.add is None else self.add(weighed, maps)


class EffectiveSqueeze(nn.Module):
    """Each channel weighed in 0..1 by the means of all channels: squeeze-and-excitation with one layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Hardsigmoid()
        self.multiply = Multiply()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) of the same shape."""
        return self.multiply(maps, self.gate(self.fc(self.pool(maps))))


class DeformableLayer(nn.Module):
    """A 3 px convolution that looks where a second one tells it to, with a weight in 0..1 for each look."""

    def __init__(self, *, name: str, in_channels: int, channels: int, norm: str) -> None:
        """``name`` begins the names of the modules inside; offsets start at 0 and weights at 0.5."""
        super().__init__()
        offset = nn.Conv2d(in_channels, 3 * 9, 3, padding=1)
        nn.init.zeros_(offset.weight)
        assert offset.bias is not None
        nn.init.zeros_(offset.bias)
        self.names = [f"{name}/{part}" for part in ("conv_offset", "conv", "norm")]
        for path, module in zip(
            self.names, (offset, build_conv(in_channels, channels), build_norm(norm, channels)), strict=True
        ):
            self.add_module(path, module)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, channels, H, W) of (B, in_channels, H, W)."""
        offset, conv, norm = (getattr(self, path) for path in self.names)
        moves, looks = offset(maps).split([18, 9], dim=1)
        # In float32 whatever the rest is in: torchvision has no bfloat16 or float16 of it on the CPU.
        with torch.autocast(maps.device.type, enabled=False):
            given = (each.float() for each in (maps, moves, conv.weight))
            found = deform_conv2d(*given, padding=1, mask=looks.float().sigmoid())
        return self.relu(norm(found.to(maps.dtype)))


def _build_layer(
    name: str, in_channels: int, channels: int, norm: str, *, kernel_px: int = 3, stride: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            {
                f"{name}/conv": build_conv(in_channels, channels, kernel_px=kernel_px, stride=stride),
                f"{name}/norm": build_norm(norm, channels),
                f"{name}/relu": nn.ReLU(inplace=True),
            }
        )
    )


def _build_depthwise(name: str, in_channels: int, channels: int, norm: str, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            {
                f"{name}/dw_conv3x3": build_conv(in_channels, in_channels, stride=stride, groups=in_channels),
                f"{name}/pw_conv1x1": build_conv(in_channels, channels, kernel_px=1),
                f"{name}/pw_norm": build_norm(norm, channels),
                f"{name}/pw_relu": nn.ReLU(inplace=True),
            }
        )
    )


def _build_stem(body: VoVNetBody, in_channels: int, norm: str, first_stride: int) -> nn.Sequential:
    """Three convolutions in one flat sequence, as the weights' names want it."""
    first, second, third = body.stem
    build = _build_depthwise if body.depthwise else _build_layer
    steps = [
        _build_layer("stem_1", in_channels, first, norm, stride=first_stride),
        build("stem_2", first, second, norm),
        build("stem_3", second, third, norm, stride=2),
    ]
    return nn.Sequential(OrderedDict(pair for step in steps for pair in step.named_children()))


def _build_stage(
    level: int, body: VoVNetBody, in_channels: int, channels: int, norm: str, deformable: bool
) -> nn.Sequential:
    """The blocks of one level, from level 3 on behind a halving of the map."""
    stage = nn.Sequential()
    if level > 2:
        stage.add_module("Pooling", nn.MaxPool2d(3, stride=2, ceil_mode=True))
    for index in range(body.blocks[level - 2]):
        source = channels if index else in_channels
        block = _build_block(f"OSA{level}_{index + 1}", level, body, source, channels, norm, deformable, index > 0)
        stage.add_module(f"OSA{level}_{index + 1}", block)
    return stage


def _build_block(
    name: str,
    level: int,
    body: VoVNetBody,
    in_channels: int,
    channels: int,
    norm: str,
    deformable: bool,
    adds: bool,
) -> AggregationBlock:
    width = body.widths[level - 2]
    reduction: nn.Module = nn.Identity()
    if body.depthwise and in_channels != width:  # a convolution per channel cannot change their number
        reduction = _build_layer(f"{name}_reduction_0", in_channels, width, norm, kernel_px=1)
    layers: list[nn.Module] = []
    for index in range(body.layers):
        layer, source = f"{name}_{index}", width if index else in_channels
        if body.depthwise:
            layers.append(_build_depthwise(layer, width, width, norm))
        elif deformable:
            layers.append(DeformableLayer(name=layer, in_channels=source, channels=width, norm=norm))
        else:
            layers.append(_build_layer(layer, source, width, norm))
    joined = in_channels + body.layers * width
    concat = _build_layer(f"{name}_concat", joined, channels, norm, kernel_px=1)
    return AggregationBlock(reduction=reduction, layers=layers, concat=concat, channels=channels, adds=adds)
