"""What the pyramid holds inside each box, from the level that suits its size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from cellvision.errors import check_choice
from cellvision.ops.boxes import compute_areas

ROI_CRITERIA = ("ratio", "area")

Sizes = Sequence[tuple[int, int]]
"""Height and width in px of every image of a batch, without its padding."""


class RoiPool(nn.Module):
    """ROIAlign (He et al. 2017) of every box from one level of the pyramid; no weights.

    Two ways to choose the level: "ratio", that of CenterMask, by the share of the image that the box covers: the
    coarsest above a half, one finer for each halving, so that nearly every cell is read from the finest; and "area",
    that of FPN (Lin et al. 2017), by the size of the box alone: stride 16 from 224 px up, one finer for each halving
    of the side.
    """

    def __init__(self, *, strides: Mapping[int, int], criterion: str = "ratio", side: int = 14) -> None:
        """Choose how to pool.

        Args:
            strides: {level: px} of the levels to pool from, neighbours, finest first.
            criterion: one of ROI_CRITERIA.
            side: S, px of the result.

        Raises:
            ConfigError: the criterion is unknown.
        """
        super().__init__()
        check_choice("model.roi_criterion", criterion, ROI_CRITERIA)
        self.strides = dict(strides)
        self.criterion = criterion
        self.side = side

    def forward(self, pyramid: Mapping[int, Tensor], boxes: Tensor, images: Tensor, image_areas: Tensor) -> Tensor:
        """Pooled features.

        Args:
            pyramid: {level: (B, C, H, W)}; levels that are not pooled from are left alone.
            boxes: (R, 4) float32 px; may reach beyond the image.
            images: (R,) int64, the image of each box, 0..B-1.
            image_areas: (R,) float32 square px of that image without its padding.

        Returns:
            (R, C, S, S), in the order of the boxes.
        """
        chosen = self.choose_levels(boxes, image_areas)
        regions = torch.cat([images.to(boxes.dtype).unsqueeze(1), boxes], dim=1)
        channels = pyramid[next(iter(self.strides))].shape[1]
        features = boxes.new_zeros(boxes.shape[0], channels, self.side, self.side)
        for index, (level, stride) in enumerate(self.strides.items()):
            here = (chosen == index).nonzero().squeeze(1)
            maps = pyramid[level].to(boxes.dtype)
            pooled = roi_align(maps, regions[here], self.side, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)
            features = features.index_copy(0, here, pooled)
        return features

    def choose_levels(self, boxes: Tensor, image_areas: Tensor) -> Tensor:
        """(R,) int64, for each box the place of its level in ``strides``."""
        areas = compute_areas(boxes)
        count = len(self.strides)
        if self.criterion == "ratio":
            wanted = torch.ceil(count - 1 - torch.log2(image_areas / areas))
        else:
            finest = math.log2(next(iter(self.strides.values())))
            wanted = torch.floor(math.log2(16) - finest + torch.log2(areas.sqrt() / 224 + 1e-8))
        return wanted.clamp(0, count - 1).long()


def flatten_boxes(boxes: Sequence[Tensor], sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of all images in one row: what RoiPool takes behind the pyramid.

    Args:
        boxes: one (R, 4) float32 per image.
        sizes: one (height, width) per image.
    """
    images = [torch.full_like(each[:, 0], index, dtype=torch.int64) for index, each in enumerate(boxes)]
    areas = [torch.full_like(each[:, 0], height * width) for each, (height, width) in zip(boxes, sizes, strict=True)]
    return torch.cat(list(boxes)), torch.cat(images), torch.cat(areas)
