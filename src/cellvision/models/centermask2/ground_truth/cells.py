"""The true cells of one image as a detector learns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cellvision.models.centermask2.ground_truth.label_masks import LabelMasks
from cellvision.types import IGNORE


class MaskTargets(Protocol):
    """The masks of the N cells of one image, asked for only in the frame of a box: N full masks would not fit."""

    def crop(self, boxes: Tensor, index: Tensor, side: int) -> Tensor:
        """The mask of one cell in each box.

        Args:
            boxes: (R, 4) float32 px; may reach beyond the image.
            index: (R,) int64, the cell, 0..N-1.
            side: px of the result.

        Returns:
            (R, side, side) bool on the device of the boxes.
        """

    def inside_share(self, boxes: Tensor, index: Tensor) -> Tensor:
        """(R,) float32 in 0..1: the part of the cell's area that lies in its box; arguments as in ``crop``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruth:
    """The cells of one image, N of them, 0 included.

    Attributes:
        boxes: (N, 4) float32 x0, y0, x1, y1 in px.
        classes: (N,) int64, 0-based: without the background.
        masks: of the same N cells.
        ignored: (H, W) bool, pixels that are neither cell nor background; None for no such pixel.
    """

    boxes: Tensor
    classes: Tensor
    masks: MaskTargets
    ignored: Tensor | None = None


def truth_from_labels(label_image: Tensor, cell_classes: Tensor) -> GroundTruth:
    """The true cells of a label image.

    Boxes are tight and on pixel edges: a cell of one pixel at (x, y) has the box x, y, x + 1, y + 1. Labels without a
    pixel, which cropping leaves behind, are left out; the pixels of cells of class IGNORE become ``ignored``.

    Args:
        label_image: (H, W) int32, 0 = background, which the padding of a batch is, too.
        cell_classes: (N,) int64; entry i is the class of label i + 1, in 1..K-1, or IGNORE.

    Example:
        >>> truth = truth_from_labels(torch.tensor([[0, 1, 1], [2, 0, 1]]), torch.tensor([1, 2]))
        >>> truth.boxes.tolist(), truth.classes.tolist()
        ([[1.0, 0.0, 3.0, 2.0], [0.0, 1.0, 1.0, 2.0]], [0, 1])
    """
    boxes, is_there = _find_boxes(label_image, len(cell_classes))
    classes = cell_classes.to(label_image.device)
    is_ignored = classes == IGNORE
    labels = (is_there & ~is_ignored).nonzero().squeeze(1)
    in_ignored = torch.cat([is_ignored.new_zeros(1), is_ignored & is_there])
    return GroundTruth(
        boxes=boxes[labels],
        classes=classes[labels] - 1,
        masks=LabelMasks(label_image, labels + 1),
        ignored=in_ignored[label_image.long()] if bool(in_ignored.any()) else None,
    )


def _find_boxes(label_image: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(count, 4) float32 tight box of each label from 1 up, and (count,) bool whether it has a pixel."""
    rows, columns = label_image.nonzero(as_tuple=True)
    owners = (label_image[rows, columns].long() - 1).unsqueeze(1).expand(-1, 2)
    places = torch.stack([columns, rows], dim=1)
    nothing = places.new_zeros(count, 2)
    start = nothing.scatter_reduce(0, owners, places, "amin", include_self=False)
    end = nothing.scatter_reduce(0, owners, places + 1, "amax")
    return torch.cat([start, end], dim=1).float(), end[:, 0] > 0
