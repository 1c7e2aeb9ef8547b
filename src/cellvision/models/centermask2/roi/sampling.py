"""Which boxes the mask branch learns from, and which cell each of them shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cellvision.models.centermask2.ground_truth.cells import GroundTruth
from cellvision.models.centermask2.options import RoiSampling
from cellvision.ops.boxes import match_boxes


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """Boxes of one image that lie on cells.

    Attributes:
        boxes: (R, 4) float32 px.
        cells: (R,) int64, the index of the cell in the image's GroundTruth.
        classes: (R,) int64 class of that cell, 0..K-1.
    """

    boxes: Tensor
    cells: Tensor
    classes: Tensor


def sample_regions(boxes: Tensor, truth: GroundTruth, options: RoiSampling) -> Regions:
    """Those of the (R, 4) proposed boxes that lie on a cell; drawn at random where they are too many.

    Random numbers come from torch's own generator, which a run seeds.
    """
    if options.append_truth:
        boxes = torch.cat([boxes, truth.boxes])
    if len(truth.boxes) == 0 or len(boxes) == 0:
        nothing = truth.classes[:0]
        return Regions(boxes=boxes[:0], cells=nothing, classes=nothing)
    ious, cells = match_boxes(boxes, truth.boxes)
    positive = (ious >= options.iou).nonzero().squeeze(1)
    if len(positive) > options.max_positives:
        positive = positive[torch.randperm(len(positive), device=boxes.device)[: options.max_positives]]
    return Regions(boxes=boxes[positive], cells=cells[positive], classes=truth.classes[cells[positive]])
