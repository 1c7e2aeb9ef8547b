"""The way down: feature maps at strides 1, 2, 4, ..., each with the width that the decoder asks for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cellvision.models.build import BACKBONES
from cellvision.models.unet.attention import build_block_attention
from cellvision.models.unet.blocks import ConvBlock


class Encoder(nn.Module):
    """The U-Net's own encoder: a convolution block per level, maximum pooling between.

    Attributes:
        has_skip: for each level whether it gives a map.
        tiles: False where a layer sees the whole image.
    """

    tiles = True

    def __init__(self, *, in_channels: int, widths: Sequence[int], norm: str, attention: str) -> None:
        """Level i has ``widths[i]`` channels at stride 2**i; ``norm`` and ``attention`` as in UNet."""
        super().__init__()
        self.has_skip = (True,) * len(widths)
        self.levels = nn.ModuleList(
            nn.Sequential(ConvBlock(source, width, norm=norm), build_block_attention(attention, width))
            for source, width in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        # One for each level, as each passes on values of another scale once the net is quantised.
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in widths[1:])

    def forward(self, images: Tensor) -> list[Tensor | None]:
        """Maps (B, widths[i], H / 2**i, W / 2**i), finest first, of (B, C, H, W)."""
        maps: list[Tensor | None] = []
        found = images
        for level, block in enumerate(self.levels):
            found = block(self.pools[level - 1](found) if level else found)
            maps.append(found)
        return maps


class TimmEncoder(nn.Module):
    """A timm encoder whose maps are brought to the decoder's widths, with one block of our own at full resolution.

    timm's encoders begin at stride 2 or 4; without the block at stride 1 the outlines of small cells would come from
    enlarged maps only.

    Attributes:
        has_skip: for each level whether it gives a map; an encoder that begins at stride 4 has none at level 1.
        tiles: False where a layer sees the whole image.
    """

    def __init__(self, *, encoder: str, pretrained: bool, in_channels: int, widths: Sequence[int], norm: str) -> None:
        """The levels of timm's ``encoder`` down to stride 2**(len(widths) - 1), level i with ``widths[i]`` channels."""
        super().__init__()
        self.backbone = BACKBONES.build(
            "timm", encoder=encoder, in_channels=in_channels, max_level=len(widths) - 1, pretrained=pretrained
        )
        self.tiles = self.backbone.tiles
        self.has_skip = tuple(level == 0 or level in self.backbone.widths for level in range(len(widths)))
        self.stem = ConvBlock(in_channels, widths[0], norm=norm)
        self.adapt = nn.ModuleDict(
            {
                str(level): ConvBlock(width, widths[level], norm=norm, kernel_px=1)
                for level, width in self.backbone.widths.items()
            }
        )

    def forward(self, images: Tensor) -> list[Tensor | None]:
        """Maps (B, widths[i], H / 2**i, W / 2**i) or None, finest first, of (B, C, H, W)."""
        found = self.backbone(images)
        maps: list[Tensor | None] = [self.stem(images)]
        for level in range(1, len(self.has_skip)):
            maps.append(self.adapt[str(level)](found[level]) if level in found else None)
        return maps
