"""RoiPool written with operators that every inference engine has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.models.centermask2.roi.pool import RoiPool


class GridPool(nn.Module):
    """ROIAlign by bilinear look-up at a fixed number of places, without weights and without selecting regions.

    Every region is read from every level, and the levels that it does not belong to are multiplied by 0: sizes depend
    on the number of regions alone. ROIAlign averages as many samples per bin and axis as the region has pixels there;
    this takes two, and lays them on one place where ROIAlign takes one. So both agree for regions of up to 2 S map
    pixels an edge (112 px on a stride-4 level of 14 px regions); in larger ones the samples lie further apart.
    """

    def __init__(self, pool: RoiPool) -> None:
        """Do what ``pool`` does."""
        super().__init__()
        self.pool = pool

    def forward(self, pyramid: Mapping[int, Tensor], boxes: Tensor, images: Tensor, image_areas: Tensor) -> Tensor:
        """(R, C, S, S) pooled features; arguments as for RoiPool."""
        chosen = self.pool.choose_levels(boxes, image_areas)
        return torch.stack(
            [
                self._sample(pyramid[level], boxes / stride - 0.5, images) * (chosen == index).view(-1, 1, 1, 1)
                for index, (level, stride) in enumerate(self.pool.strides.items())
            ]
        ).sum(0)

    def _sample(self, maps: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
        """(R, C, S, S) of (B, C, H, W) maps at boxes in map pixels, 0 being the centre of the first one."""
        batch, channels, height, width = maps.shape
        side, regions = self.pool.side, boxes.shape[0]
        x, is_beside = self._place(boxes[:, 0], boxes[:, 2], width)
        y, is_above = self._place(boxes[:, 1], boxes[:, 3], height)
        # All images below each other: clamped places never reach into the next one.
        tall = maps.transpose(0, 1).reshape(1, channels, batch * height, width)
        y = y + (images * height).to(y.dtype).unsqueeze(1)
        across = ((2 * x + 1) / width - 1).unsqueeze(1).expand(-1, 2 * side, -1)
        down = ((2 * y + 1) / (batch * height) - 1).unsqueeze(2).expand(-1, -1, 2 * side)
        grid = torch.stack([across, down], dim=3).reshape(1, regions * 2 * side, 2 * side, 2)
        found = F.grid_sample(tall, grid.to(tall.dtype), mode="bilinear", padding_mode="border", align_corners=False)
        found = found.reshape(channels, regions, 2 * side, 2 * side).transpose(0, 1)
        is_outside = is_above.unsqueeze(2) | is_beside.unsqueeze(1)
        return F.avg_pool2d(found * (~is_outside).unsqueeze(1).to(found.dtype), 2)

    def _place(self, start: Tensor, stop: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """(R, 2 S) clamped map coordinates of the samples of one axis, and which of them do not count."""
        bin_size = (stop - start) / self.pool.side
        bins = torch.arange(self.pool.side, device=start.device, dtype=start.dtype)
        # One sample per bin lies in its middle, two a quarter from its ends.
        shift = torch.where(bin_size > 1, 0.25, 0.0).to(start.dtype).unsqueeze(1)
        middles = bins + 0.5
        steps = torch.stack([middles - shift, middles + shift], dim=2).flatten(1)
        places = start.unsqueeze(1) + steps * bin_size.unsqueeze(1)
        # A box without any extent holds no sample.
        return places.clamp(0, length - 1), (places < -1) | (places > length) | (bin_size <= 0).unsqueeze(1)
