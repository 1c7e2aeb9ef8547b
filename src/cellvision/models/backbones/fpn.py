"""Feature pyramid (Lin et al., 2017): maps of one width at every level, with coarser levels on top."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cellvision.errors import ConfigError, ShapeError, check_choice, explain
from cellvision.models.backbones.blocks import Add, BottomUp, Mean

FUSIONS = ("sum", "avg")


class FPN(nn.Module):
    """The levels of a bottom-up brought to one width, each told what the coarser ones saw, and up to two more.

    Attributes:
        levels: of the result, finest first, such as (3, 4, 5, 6, 7).
        strides: {level: px of the image per px of the map}.
        out_channels: of every map.
        size_divisibility: H and W must be multiples of this.
        tiles: False where the bottom-up sees the whole image.

    Example:
        >>> import torch
        >>> from cellvision.models.backbones.bottom_up import build_bottom_up
        >>> bottom_up = build_bottom_up("resnet18", in_channels=1, levels=(3, 4, 5), norm="batch")
        >>> pyramid = FPN(bottom_up=bottom_up, out_channels=16)(torch.zeros(1, 1, 64, 96))
        >>> {level: tuple(found.shape[2:]) for level, found in pyramid.items()}
        {3: (8, 12), 4: (4, 6), 5: (2, 3), 6: (1, 2), 7: (1, 1)}
    """

    def __init__(
        self,
        *,
        bottom_up: BottomUp,
        levels: Sequence[int] = (3, 4, 5),
        out_channels: int,
        top_levels: int = 2,
        fuse: str = "sum",
    ) -> None:
        """Build the pyramid on ``bottom_up``.

        Args:
            bottom_up: with ``widths`` and ``stem_stride``, from ``build_bottom_up``.
            levels: those of the bottom-up to use, one after the other; add 2 for cells of a few pixels.
            out_channels: of every map.
            top_levels: how many coarser levels to add, 0, 1 or 2.
            fuse: "sum" of a level and the enlarged coarser one, or their mean, "avg".

        Raises:
            ConfigError: levels with gaps or not in the bottom-up, or another number out of range.
        """
        super().__init__()
        self.inner = tuple(sorted(levels))
        _check(bottom_up, self.inner, out_channels, top_levels, fuse)
        self.bottom_up = bottom_up
        for level in self.inner:
            self.add_module(f"fpn_lateral{level}", _build_conv(bottom_up.widths[level], out_channels, 1))
            self.add_module(f"fpn_output{level}", _build_conv(out_channels, out_channels, 3))
        # One for each level, as each has another scale once the net is quantised.
        self.ups = nn.ModuleList(nn.Upsample(scale_factor=2, mode="nearest") for _ in self.inner[1:])
        self.joins = nn.ModuleList(Mean() if fuse == "avg" else Add() for _ in self.inner[1:])
        deepest = self.inner[-1]
        self.top_block = TopBlock(out_channels, names=[f"p{deepest + step + 1}" for step in range(top_levels)])
        self.levels = (*self.inner, *range(deepest + 1, deepest + 1 + top_levels))
        self.strides = {level: bottom_up.stem_stride << level >> 2 for level in self.levels}
        self.out_channels = out_channels
        self.size_divisibility = self.strides[deepest]
        self.tiles = bottom_up.tiles

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """{level: (B, out_channels, ceil(H / stride), ceil(W / stride))} of (B, C, H, W) float32, finest first.

        Raises:
            ShapeError: H or W is not a multiple of ``size_divisibility``.
        """
        self._check_size(images)
        found = self.bottom_up(images)
        pyramid: dict[int, Tensor] = {}
        coarser: Tensor | None = None
        for index, level in reversed(list(enumerate(self.inner))):
            merged = self.get_submodule(f"fpn_lateral{level}")(found[level])
            if coarser is not None:
                merged = self.joins[index](merged, self.ups[index](coarser))
            coarser = merged
            pyramid[level] = self.get_submodule(f"fpn_output{level}")(merged)
        pyramid = dict(reversed(pyramid.items()))
        top = self.top_block(pyramid[self.inner[-1]])
        return {**pyramid, **dict(zip(self.levels[len(self.inner) :], top, strict=True))}

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.size_divisibility or width % self.size_divisibility:
            raise ShapeError(
                explain(
                    got=f"images are {height}x{width} px",
                    need=f"multiples of {self.size_divisibility} px for levels {list(self.inner)}",
                    hint="padding at the right and at the bottom",
                )
            )


class TopBlock(nn.Module):
    """Coarser levels from the coarsest map of the pyramid, each at half the size of the one before."""

    def __init__(self, channels: int, *, names: Sequence[str]) -> None:
        """One convolution per name, such as ("p6", "p7")."""
        super().__init__()
        self.names = tuple(names)
        for name in self.names:
            self.add_module(name, _build_conv(channels, channels, 3, stride=2))
        self.relus = nn.ModuleList(nn.ReLU() for _ in self.names[1:])

    def forward(self, maps: Tensor) -> list[Tensor]:
        """A map for each name; the first is given as it is, and the second made from its positive part."""
        found: list[Tensor] = []
        for index, name in enumerate(self.names):
            source = self.relus[index - 1](found[-1]) if found else maps
            found.append(self.get_submodule(name)(source))
        return found


def _build_conv(in_channels: int, channels: int, kernel_px: int, *, stride: int = 1) -> nn.Conv2d:
    """With a bias, without normalisation; uniform in +-sqrt(3 / inputs) at the start, as in detectron2."""
    conv = nn.Conv2d(in_channels, channels, kernel_px, stride=stride, padding=kernel_px // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _check(bottom_up: BottomUp, levels: tuple[int, ...], out_channels: int, top_levels: int, fuse: str) -> None:
    known = sorted(bottom_up.widths)
    check_choice("model.fuse", fuse, FUSIONS)
    is_gapless = bool(levels) and levels == tuple(range(levels[0], levels[0] + len(levels)))
    for holds, got, need, hint in (
        (set(levels) <= set(known), f"levels={list(levels)}", f"some of the bottom-up's {known}", f"levels={known}"),
        (is_gapless, f"levels={list(levels)}", "levels one after the other, none twice", "levels=[3,4,5]"),
        (out_channels >= 1, f"fpn_channels={out_channels}", "a whole number from 1 up", "fpn_channels=128"),
        (top_levels in (0, 1, 2), f"top_levels={top_levels}", "0, 1 or 2", "top_levels=2"),
    ):
        if not holds:
            raise ConfigError(explain(got=f"model.{got}", need=need, hint=f"model.{hint}"))
