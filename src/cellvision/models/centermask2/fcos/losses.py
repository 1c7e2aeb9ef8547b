"""The losses of class, box and centre-ness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from cellvision.models.centermask2.fcos.head import FcosOutputs
from cellvision.models.centermask2.fcos.targets import FcosTargets
from cellvision.models.centermask2.options import FcosLosses
from cellvision.ops.box_losses import compute_box_losses, compute_centreness
from cellvision.ops.loss_term import compute_sum_of_processes


def compute_fcos_losses(outputs: FcosOutputs, targets: FcosTargets, options: FcosLosses) -> dict[str, Tensor]:
    """The three losses of a batch, in float32, 0 with a gradient where nothing is to be learned.

    Over the places of all processes that train together; see ``compute_sum_of_processes``.

    Returns:
        "loss_fcos_cls": focal loss of all places but the ignored, per positive place;
        "loss_fcos_loc": box loss of the positive places, weighted by how central they are;
        "loss_fcos_ctr": binary cross-entropy of the centre-ness, per positive place.
    """
    class_logits = _flatten(outputs.class_logits)
    ltrb = _flatten(outputs.ltrb)[targets.positive]
    centreness_logits = _flatten(outputs.centreness_logits)[targets.positive].squeeze(1)
    centreness = compute_centreness(targets.ltrb)
    boxes = compute_box_losses(ltrb, targets.ltrb, kind=options.box_loss, smoothing=options.smoothing)
    own = [
        _compute_class_loss(class_logits, targets, options),
        (boxes * centreness).sum(),
        F.binary_cross_entropy_with_logits(centreness_logits, centreness, reduction="sum"),
        centreness.sum(),
        centreness.new_tensor(len(centreness)),
    ]
    classes, boxes, centres, total_centreness, positives = compute_sum_of_processes(torch.stack(own))
    return {
        "loss_fcos_cls": classes / positives.clamp_min(1),
        "loss_fcos_loc": boxes / total_centreness.clamp_min(1e-6),
        "loss_fcos_ctr": centres / positives.clamp_min(1),
    }


def _compute_class_loss(logits: Tensor, targets: FcosTargets, options: FcosLosses) -> Tensor:
    """Scalar sum over the places and classes."""
    truth = torch.zeros_like(logits)
    truth[targets.positive, targets.classes] = 1
    weights = (~targets.ignored).to(logits.dtype)
    if options.class_weights is not None:
        weights[targets.positive] = weights.new_tensor(options.class_weights)[targets.classes]
    losses = sigmoid_focal_loss(logits, truth, alpha=options.alpha, gamma=options.gamma)
    return (losses * weights.unsqueeze(1)).sum()


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """(all places, C) float32 of one (B, C, H, W) per level, in the order of FcosTargets."""
    return torch.cat([each.permute(0, 2, 3, 1).flatten(0, 2) for each in maps]).float()
