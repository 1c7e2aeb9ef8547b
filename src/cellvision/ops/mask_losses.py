"""Losses of the masks of single cells, each drawn in the frame of its own box.

Means over all processes that train together, as those of ``loss_term``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cellvision.ops.loss_term import compute_weighted_mean


def compute_mask_bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Scalar mean binary cross-entropy over all pixels of all cells; 0, with a gradient, without cells.

    Args:
        logits: (R, M, M) float32.
        masks: (R, M, M) float32, 0 or 1.
    """
    losses = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return compute_weighted_mean(losses, torch.ones_like(losses))


def compute_mask_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Scalar mean over cells of 1 - Dice coefficient; shapes as in ``compute_mask_bce``.

    Milletari et al., "V-Net" (2016). Per cell, so that thin cells count as much as those that fill their box; one
    pixel is added above and below, so that an empty mask is defined.
    """
    found = logits.sigmoid()
    shared = (found * masks).sum((1, 2))
    total = found.sum((1, 2)) + masks.sum((1, 2))
    losses = 1 - (2 * shared + 1) / (total + 1)
    return compute_weighted_mean(losses, torch.ones_like(losses))


def compute_mask_boundary(logits: Tensor, masks: Tensor) -> Tensor:
    """Scalar mean binary cross-entropy over the pixels along the true contours; shapes as in ``compute_mask_bce``.

    Those whose 3 x 3 surroundings hold both cell and background: the band by which Cheng et al., "Boundary IoU"
    (2021) score masks. As a further term it weighs the contour more, the idea of Ronneberger et al., "U-Net" (2015).
    The frame of the box is no contour.
    """
    losses = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    sides = masks.unsqueeze(1), 1 - masks.unsqueeze(1)
    inside, outside = (F.max_pool2d(side, 3, stride=1, padding=1).squeeze(1) for side in sides)
    return compute_weighted_mean(losses, inside + outside - 1)
