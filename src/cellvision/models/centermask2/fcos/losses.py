"""The losses of class, box and centre-ness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torchvision.ops import sigmoid_focal_loss

from cellvision.models.centermask2.fcos.head import FcosOutputs
from cellvision.models.centermask2.fcos.targets import FcosTargets
from cellvision.models.centermask2.options import FcosLosses
from cellvision.ops.box_losses import compute_box_losses, compute_centreness


def compute_fcos_losses(outputs: FcosOutputs, targets: FcosTargets, options: FcosLosses) -> dict[str, Tensor]:
    """The three losses of a batch, in float32, 0 with a gradient where nothing is to be learned.

    Sums over the places of this process, divided by what the processes have on average: the mean of their gradients
    is then that of the whole batch, however unevenly the cells fall on them. Where no gradient is wanted each process
    divides by its own, because in validation they can hold different numbers of fields: one with a field more would
    wait for an answer that never comes.

    Returns:
        "loss_fcos_cls": focal loss of all places but the ignored, per positive place;
        "loss_fcos_loc": box loss of the positive places, weighted by how central they are;
        "loss_fcos_ctr": binary cross-entropy of the centre-ness, per positive place.
    """
    class_logits = _flatten(outputs.class_logits)
    ltrb = _flatten(outputs.ltrb)[targets.positive]
    centreness_logits = _flatten(outputs.centreness_logits)[targets.positive].squeeze(1)
    centreness = compute_centreness(targets.ltrb)
    own = torch.stack([centreness.new_tensor(len(centreness)), centreness.sum()])
    positives, total_centreness = compute_mean_of_processes(own) if torch.is_grad_enabled() else own
    boxes = compute_box_losses(ltrb, targets.ltrb, kind=options.box_loss, smoothing=options.smoothing)
    centres = F.binary_cross_entropy_with_logits(centreness_logits, centreness, reduction="sum")
    return {
        "loss_fcos_cls": _compute_class_loss(class_logits, targets, options) / positives.clamp_min(1),
        "loss_fcos_loc": (boxes * centreness).sum() / total_centreness.clamp_min(1e-6),
        "loss_fcos_ctr": centres / positives.clamp_min(1),
    }


def compute_mean_of_processes(values: Tensor) -> Tensor:
    """The mean of ``values`` over the processes that train together; as they are where there is one.

    Every process has to call it equally often.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


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
