"""Leaving out, or weakening, what was found twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from cellvision.ops.boxes import compute_ious


def part_classes(boxes: Tensor, classes: Tensor) -> Tensor:
    """The boxes, those of each class moved so far that no two classes overlap.

    One suppression over all of them then equals one per class, without a loop over classes, which could not be
    exported. The shift rounds coordinates to 1/1000 px at a few classes on 2,000 px: far below what an overlap notices.

    Args:
        boxes: (N, 4) float32 in px; may reach beyond the image.
        classes: (N,) int64 from 0 up.
    """
    some = F.pad(boxes, (0, 0, 0, 1))  # one box of zeros, so that there is a largest side without boxes too
    reach = some.max() - some.min() + 1
    return boxes + (classes.to(boxes.dtype) * reach).unsqueeze(1)


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, *, iou: float) -> Tensor:
    """Indices of the boxes that no better one of their class overlaps by more than ``iou``, best first.

    Args:
        boxes: (N, 4) float32 in px.
        scores: (N,) float32.
        classes: (N,) int64 from 0 up.
        iou: intersection over union in 0..1.

    Returns:
        (M,) int64.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [0, 0, 4, 4]])
        >>> suppress(boxes, torch.tensor([0.5, 0.9, 0.7]), torch.tensor([0, 0, 1]), iou=0.6).tolist()
        [1, 2]
    """
    return nms(part_classes(boxes, classes), scores, iou)


@torch.library.custom_op("cellvision::keep_best", mutates_args=())
def keep_best(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> Tensor:
    """``suppress`` for a batch, as one operator that exporters can replace: which boxes stay.

    Args:
        boxes: (B, P, 4) float32 in px.
        scores: (B, P) float32; negative where there is no box.
        classes: (B, P) int64 from 0 up.
        iou: intersection over union in 0..1.

    Returns:
        (B, P) bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        there = (scores[image] >= 0).nonzero().squeeze(1)
        best = suppress(boxes[image, there], scores[image, there], classes[image, there], iou=iou)
        kept[image, there[best]] = True
    return kept


@keep_best.register_fake
def _(boxes: Tensor, scores: Tensor, classes: Tensor, iou: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def suppress_softly(
    boxes: Tensor, scores: Tensor, classes: Tensor, *, sigma: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Soft-NMS: an overlapped box is not dropped, its score fades by exp(-IoU^2 / sigma).

    Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code" (2017), the Gaussian form. Where cells
    lie over each other two of them overlap more than any threshold that still removes doubles.

    Args:
        boxes: (N, 4) float32 in px.
        scores: (N,) float32 in 0..1.
        classes: (N,) int64 from 0 up; classes do not fade each other.
        sigma: > 0; 0.5 in the paper.
        limit: how many to pick at most; one pass over all boxes for each.

    Returns:
        (M,) int64 indices, best first, and their (M,) faded scores; M is the smaller of N and ``limit``.
    """
    moved = part_classes(boxes, classes)
    left = scores.clone()  # what is picked is set to -1, below every score
    picked, faded = [], []
    for _ in range(min(len(boxes), limit)):
        best = left.argmax()
        picked.append(best)
        faded.append(left[best])
        overlap = compute_ious(moved, moved[best].unsqueeze(0)).squeeze(1)
        left = (left * torch.exp(-overlap.square() / sigma)).where(left >= 0, left)
        left[best] = -1
    if not picked:
        return classes[:0], scores[:0]
    return torch.stack(picked), torch.stack(faded)
