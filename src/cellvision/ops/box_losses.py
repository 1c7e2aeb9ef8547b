"""How far a predicted box is from the true one, both given by the distances to their sides from one place inside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cellvision.ops.loss_term import TINY

BOX_LOSSES = ("giou", "iou", "linear_iou", "diou", "ciou")

SMALLEST_IOU = 1e-6
"""Floor under the logarithm and the aspect ratio of a box that has no area yet."""


def compute_box_losses(found: Tensor, truth: Tensor, *, kind: str = "giou", smoothing: float = 0.0) -> Tensor:
    """One loss per pair of boxes.

    "giou": Rezatofighi et al., "Generalized Intersection over Union" (2019); "diou" and "ciou": Zheng et al.,
    "Distance-IoU Loss" (2020); "iou": -log IoU, Yu et al., "UnitBox" (2016); "linear_iou": 1 - IoU.

    The slopes of "ciou" are those of the paper and of torchvision, which are large for boxes that have almost no size
    yet: an angle changes with 1 / side. The paper's own remedy, to leave that factor out, is not taken. Where training
    with it begins badly, gradient clipping, a longer warm-up or "diou" help.

    Args:
        found: (P, 4) distances to the left, top, right and bottom side, >= 0.
        truth: (P, 4) the true ones, > 0.
        kind: one of BOX_LOSSES.
        smoothing: added to intersection and union, in the square of the unit of the distances. At 1 with distances
            in strides, as in the published nets, a box of a few strides is barely told apart from its neighbours;
            0 treats all sizes alike.

    Returns:
        (P,) losses.

    Example:
        >>> compute_box_losses(torch.ones(1, 4), torch.full((1, 4), 2.0), kind="linear_iou").item()
        0.75
    """
    shared = _compute_area(torch.minimum(found, truth))
    union = _compute_area(truth) + _compute_area(found) - shared
    iou = (shared + smoothing) / (union + smoothing).clamp_min(TINY)
    if kind == "linear_iou":
        return 1 - iou
    if kind == "iou":
        return -iou.clamp_min(SMALLEST_IOU).log()
    around = torch.maximum(found, truth)
    if kind == "giou":
        enclosing = _compute_area(around).clamp_min(TINY)
        return 1 - iou + (enclosing - union) / enclosing
    losses = 1 - iou + _compute_distance(found, truth) / _compute_diagonal(around).clamp_min(TINY)
    return losses if kind == "diou" else losses + _compute_aspect_penalty(found, truth, iou)


def compute_centreness(ltrb: Tensor) -> Tensor:
    """How central a place lies in its box: 1 in the middle, towards 0 at a side.

    Tian et al., "FCOS" (2019): sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

    Args:
        ltrb: (P, 4) distances to the sides, > 0.

    Returns:
        (P,) in 0..1.
    """
    across, down = ltrb[:, 0::2], ltrb[:, 1::2]
    return (across.amin(1) / across.amax(1) * (down.amin(1) / down.amax(1))).sqrt()


def _compute_sides(ltrb: Tensor) -> tuple[Tensor, Tensor]:
    return ltrb[:, 0] + ltrb[:, 2], ltrb[:, 1] + ltrb[:, 3]


def _compute_area(ltrb: Tensor) -> Tensor:
    width, height = _compute_sides(ltrb)
    return width * height


def _compute_diagonal(ltrb: Tensor) -> Tensor:
    """(P,) squared diagonals."""
    width, height = _compute_sides(ltrb)
    return width.square() + height.square()


def _compute_distance(found: Tensor, truth: Tensor) -> Tensor:
    """(P,) squared distances between the centres: a centre lies (r - l) / 2, (b - t) / 2 from the common place."""
    offset = (found[:, 2:] - found[:, :2] - truth[:, 2:] + truth[:, :2]) / 2
    return offset.square().sum(1)


def _compute_aspect_penalty(found: Tensor, truth: Tensor, iou: Tensor) -> Tensor:
    """(P,) the term of CIoU on the angle of the diagonal, its weight without gradient as in the paper."""
    angles = [
        torch.atan(width / height.clamp_min(SMALLEST_IOU)) for width, height in map(_compute_sides, (found, truth))
    ]
    difference = 4 / math.pi**2 * (angles[1] - angles[0]).square()
    with torch.no_grad():
        weight = difference / (1 - iou + difference).clamp_min(TINY)
    return weight * difference
