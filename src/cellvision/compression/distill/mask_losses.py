"""What a mask branch learns from another one in the same boxes: means over all processes that train together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cellvision.compression.distill.map_losses import compute_sigmoid_divergence
from cellvision.models.centermask2.roi.maskiou_head import LARGEST
from cellvision.ops.loss_term import compute_weighted_mean


def compute_mask_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Scalar mean over all pixels of all boxes of the divergence from the teacher's mask; 0, with a gradient, without.

    Hinton et al. (2015) with a yes or no per pixel.

    Args:
        student: (R, M, M) mask logits.
        teacher: the same, of the teacher.
        temperature: see `compute_sigmoid_divergence`.
    """
    losses = compute_sigmoid_divergence(student, teacher, temperature=temperature)
    return compute_weighted_mean(losses, torch.ones_like(losses))


def compute_rating_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar half mean squared difference of how two nets rate the same masks; 0, with a gradient, without masks.

    Both rate what the *student* drew: the teacher's rating of its own masks says nothing about the student's. Beyond
    LARGEST it grows no longer as the square, as in the loss on true overlaps (`compute_maskiou_loss`).

    Args:
        student: (R,) expected intersection over union, unbounded.
        teacher: the same, of the teacher.
    """
    losses = F.huber_loss(student, teacher, reduction="none", delta=LARGEST)
    return compute_weighted_mean(losses, torch.ones_like(losses))
