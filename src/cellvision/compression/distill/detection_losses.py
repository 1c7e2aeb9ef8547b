"""What a detector learns from another one's classes, boxes and centre-ness at the same places.

All take one row per place: the places of all levels and images together. Each place weighs as the teacher's quality
there says, so that the thousands of places without a cell do not drown those with one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cellvision.compression.distill.map_losses import compute_sigmoid_divergence
from cellvision.ops.box_losses import compute_box_losses
from cellvision.ops.loss_term import compute_weighted_mean

CONFIDENT = 0.3
"""Quality from which a teacher's box is one to learn."""


def compute_quality(class_logits: Tensor, centreness_logits: Tensor) -> Tensor:
    """(P,) in 0..1, how good a detection at each place is: the score of FCOS, sqrt(class probability * centre-ness).

    Args:
        class_logits: (P, K), of which the best class counts.
        centreness_logits: (P, 1).
    """
    return (class_logits.amax(1).sigmoid() * centreness_logits.squeeze(1).sigmoid()).sqrt()


def compute_fcos_class_loss(
    student: Tensor, teacher: Tensor, *, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Scalar mean divergence of class probabilities, a place weighing as the surer of both nets is of a cell there.

    Du et al., "Distilling Object Detectors with Feature Richness" (2021) weigh places by the teacher's largest class
    score. By that alone a student that sees cells where the teacher sees none would hardly be told, so the student's
    own score counts as well, without gradient.

    Args:
        student: (P, K) logits.
        teacher: the same, of the teacher.
        gamma: power of the weight; 0 counts all places alike.
        temperature: see `compute_sigmoid_divergence`.
    """
    with torch.no_grad():
        weights = torch.maximum(student, teacher).amax(1).sigmoid() ** gamma
    divergence = compute_sigmoid_divergence(student, teacher, temperature=temperature).sum(1)
    return compute_weighted_mean(divergence, weights)


def compute_fcos_box_loss(student: Tensor, teacher: Tensor, quality: Tensor, *, confident: float = CONFIDENT) -> Tensor:
    """Scalar mean 1 - GIoU of the student's box with the teacher's, weighted by quality, where the teacher is sure.

    Rezatofighi et al., "Generalized Intersection over Union" (2019), in its usual role with the teacher's box as truth.
    Boxes of the teacher without an area do not count. 0, with a gradient, where none does.

    Args:
        student: (P, 4) distances to the sides, >= 0.
        teacher: the same, of the teacher.
        quality: (P,) of `compute_quality`, of the teacher.
        confident: places of lower quality do not count.
    """
    has_area = (teacher[:, :2] + teacher[:, 2:]).amin(1) > 0
    sure = ((quality >= confident) & has_area).nonzero().squeeze(1)
    losses = compute_box_losses(student[sure], teacher[sure])
    return compute_weighted_mean(losses, quality[sure])


def compute_fcos_centre_loss(
    student: Tensor, teacher: Tensor, quality: Tensor, *, confident: float = CONFIDENT
) -> Tensor:
    """Scalar mean divergence of (P, 1) centre-ness logits; places and weights as in `compute_fcos_box_loss`."""
    sure = (quality >= confident).nonzero().squeeze(1)
    divergence = compute_sigmoid_divergence(student[sure], teacher[sure]).squeeze(1)
    return compute_weighted_mean(divergence, quality[sure])
