"""The pieces of a Swin-UNet: stages of window attention, and the ways between two resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.swin_transformer import SwinTransformerBlock

from cellvision.models.swin_unet.attention import WindowAttention
from cellvision.models.unet.blocks import Cat


class Stage(nn.Sequential):
    """Transformer blocks of one resolution, every second one with its windows shifted by half of one."""

    def __init__(self, width: int, *, heads: int, window: int, mlp_ratio: float, drop_paths: Sequence[float]) -> None:
        """For maps of ``width`` channels; one block for each of ``drop_paths``, the shares of skipped blocks."""
        super().__init__(
            *(
                SwinTransformerBlock(
                    width,
                    heads,
                    window_size=[window, window],
                    shift_size=[at % 2 * (window // 2)] * 2,
                    mlp_ratio=mlp_ratio,
                    stochastic_depth_prob=share,
                    attn_layer=WindowAttention,
                )
                for at, share in enumerate(drop_paths)
            )
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, H, W) of the same shape; H and W are multiples of the window."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchMerging(nn.Module):
    """Half the resolution: four neighbours become one place, as torchvision's module of that name, channels first.

    Channels first, because pruning follows a concatenation along the second axis only.
    """

    def __init__(self, in_width: int, width: int) -> None:
        """From ``in_width`` to ``width`` channels."""
        super().__init__()
        self.norm = LayerNorm2d(4 * in_width)
        self.reduction = nn.Conv2d(4 * in_width, width, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, H / 2, W / 2) of (B, in_width, H, W)."""
        four = [maps[:, :, row::2, column::2] for column in range(2) for row in range(2)]
        return self.reduction(self.norm(torch.cat(four, dim=1)))


class PatchExpanding(nn.Sequential):
    """A higher resolution: each place becomes ``factor`` x ``factor`` by a linear layer of its own channels only.

    Written as the transposed convolution that this is; its kernels do not overlap, so that it leaves no checkerboard.
    """

    def __init__(self, in_width: int, width: int, *, factor: int) -> None:
        """From ``in_width`` to ``width`` channels."""
        expand = nn.ConvTranspose2d(in_width, width, factor, stride=factor, bias=False)
        super().__init__(expand, LayerNorm2d(width))


class DecoderStage(nn.Module):
    """One level back up: double the resolution, join the encoder's map of that stride, attend."""

    def __init__(self, deep_width: int, width: int, stage: Stage) -> None:
        """``deep_width``: of the map from below; ``width``: of the skip, of ``stage`` and of the result."""
        super().__init__()
        self.expand = PatchExpanding(deep_width, width, factor=2)
        self.cat = Cat()
        self.reduce = nn.Conv2d(2 * width, width, 1)
        self.stage = stage

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        """(B, width, 2H, 2W) from (B, deep_width, H, W) and the skip (B, width, 2H, 2W)."""
        return self.stage(self.reduce(self.cat(self.expand(deep), skip)))
