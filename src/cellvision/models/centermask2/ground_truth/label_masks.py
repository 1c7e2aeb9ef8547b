"""True masks in the frame of a box, straight from the label image."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from cellvision.models.centermask2.pairs import list_pairs
from cellvision.ops.boxes import PAIRS_AT_ONCE


class LabelMasks:
    """The masks of some labels of one label image; nothing of the size N x H x W is ever made.

    ``crop`` gives what detectron2 makes of bitmaps: ROIAlign of the cell's 0/1 mask, adaptive and aligned, set where
    the mean is 0.5 or more.
    """

    def __init__(self, label_image: Tensor, ids: Tensor) -> None:
        """Keep the (H, W) integer label image, H and W >= 1, and the (N,) int64 labels of its cells, each > 0."""
        self.label_image = label_image
        self.ids = ids

    def crop(self, boxes: Tensor, index: Tensor, side: int) -> Tensor:
        """(R, side, side) bool; see MaskTargets."""
        masks = torch.zeros(len(boxes), side, side, dtype=torch.bool, device=boxes.device)
        samples = _count_samples(boxes, side)
        for across, down in samples.unique(dim=0).tolist():
            if across * down == 0:  # the box is empty
                continue
            some = (samples == samples.new_tensor([across, down])).all(1).nonzero().squeeze(1)
            at_once = max(PAIRS_AT_ONCE // (4 * side * side * across * down), 1)
            for part in some.split(at_once):
                masks[part] = self._average(boxes[part], self.ids[index[part]], side, across, down) >= 0.5
        return masks

    def inside_share(self, boxes: Tensor, index: Tensor) -> Tensor:
        """(R,) float32 in 0..1, the share of the cell's pixels whose centre is in the box; see MaskTargets.

        Counted in float32, which not every device has more of; whole numbers are exact in it up to 16 million.
        """
        positions, starts, counts = self._pixels
        areas = counts[index]
        inside = torch.zeros(len(boxes), dtype=torch.float32, device=boxes.device)
        for owners, within in list_pairs(areas):
            pixels = positions[starts[index[owners]] + within]
            x, y = pixels % self.label_image.shape[1] + 0.5, pixels // self.label_image.shape[1] + 0.5
            x0, y0, x1, y1 = boxes[owners].unbind(1)
            is_inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
            inside.index_add_(0, owners, is_inside.float())
        return inside / areas.clamp_min(1)

    @cached_property
    def _pixels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of all cell pixels, cell by cell, and for each of ``ids`` where its own begin and how many."""
        labels = self.label_image.flatten()
        positions = labels.nonzero().squeeze(1)
        ordered, order = labels[positions].sort(stable=True)
        starts = torch.searchsorted(ordered, self.ids.to(ordered.dtype))
        ends = torch.searchsorted(ordered, self.ids.to(ordered.dtype), right=True)
        return positions[order], starts, ends - starts

    def _average(self, boxes: Tensor, ids: Tensor, side: int, across: int, down: int) -> Tensor:
        """(R, side, side) mean of the cell's mask over ``down`` x ``across`` samples in each of side x side bins.

        A sample between pixel centres is the mean of the four around it, weighted by nearness, and the weights are a
        product of one for the row and one for the column: rows and columns are averaged one after the other.
        """
        height, width = self.label_image.shape
        columns, column_weights = _find_neighbours(boxes[:, 0], boxes[:, 2], side, across, width)
        rows, row_weights = _find_neighbours(boxes[:, 1], boxes[:, 3], side, down, height)
        labels = self.label_image.flatten()[rows.unsqueeze(2) * width + columns.unsqueeze(1)]
        is_cell = (labels == ids.view(-1, 1, 1)).to(boxes.dtype)
        by_column = (is_cell * column_weights.unsqueeze(1)).unflatten(2, (side, -1)).sum(3)
        total = (by_column * row_weights.unsqueeze(2)).unflatten(1, (side, -1)).sum(2)
        return total / (across * down)


def _count_samples(boxes: Tensor, side: int) -> Tensor:
    """(R, 2) int64, how many samples each of ``side`` bins takes across and down: one per px begun."""
    lengths = (boxes[:, 2:] - 0.5) - (boxes[:, :2] - 0.5)  # the shift rounds; detectron2 shifts first as well
    return (lengths / side).ceil().long().clamp_min(0)


def _find_neighbours(low: Tensor, high: Tensor, side: int, samples: int, size: int) -> tuple[Tensor, Tensor]:
    """The pixels that the samples of one axis lie between.

    Args:
        low: (R,) px, the near sides of the boxes on that axis.
        high: (R,) px, the far sides.
        side: bins.
        samples: in each bin.
        size: px of the image on that axis.

    Returns:
        (R, side * samples * 2) int64 pixels and as many weights: of the two of a sample they sum to 1, or are 0 where
        the sample is more than 1 px beyond the image.
    """
    start = low - 0.5  # in units where pixel i has its centre at i
    bin_length = ((high - 0.5) - start) / side
    bins = torch.arange(side, device=low.device).unsqueeze(1)
    steps = torch.arange(samples, device=low.device) + 0.5
    length = bin_length.view(-1, 1, 1)
    places = start.view(-1, 1, 1) + bins * length + steps * length / samples
    is_in_reach = (places >= -1) & (places <= size)
    clamped = places.clamp(0, size - 1)
    first = clamped.floor()
    above = clamped - first
    pixels = torch.stack([first, (first + 1).clamp_max(size - 1)], dim=-1).long()
    weights = torch.stack([1 - above, above], dim=-1) * is_in_reach.unsqueeze(-1)
    return pixels.flatten(1), weights.flatten(1)
