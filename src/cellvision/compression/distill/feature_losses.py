"""What a net learns from the feature maps of another one; both maps have the same channels and places."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cellvision.ops.loss_term import TINY, compute_weighted_mean


def compute_channel_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Scalar difference of where each channel is active: the mean over images and channels of KL(teacher || student).

    Each channel is a distribution over the places of the image, by a softmax. Shu et al., "Channel-wise Knowledge
    Distillation for Dense Prediction" (2021). What a channel's level is, is left to the student.

    Args:
        student: (B, C, H, W) features, or logits of classes.
        teacher: the same, of the teacher.
        temperature: above 0, below 1 for the peaks only; the loss is multiplied by its square, as in the paper.
    """
    found = F.log_softmax(student.flatten(2) / temperature, dim=2)
    wanted = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
    return (wanted.exp() * (wanted - found)).sum(2).mean() * temperature**2


def compute_focus_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    cells: Tensor,
    outside: Tensor,
    temperature: float = 0.5,
    outside_weight: float = 0.5,
) -> Tensor:
    """Scalar squared difference of features, in cells and outside by themselves, where the teacher looks.

    The focal part of FGD (Yang et al., "Focal and Global Knowledge Distillation for Detectors", 2022), without its
    imitation of attention and its global part. Every cell counts the same, however large: the paper by boxes, here by
    the cells' own pixels.

    Args:
        student: (B, C, H, W) features.
        teacher: the same, of the teacher.
        cells: (B, H, W) weights that sum to 1 for each cell, of ``weigh_cells``.
        outside: (B, H, W) weights that sum to 1 for each image.
        temperature: of the attention over places and over channels, as in the paper; above 0.
        outside_weight: of what lies outside, against 1 for cells.

    Returns:
        Scalar; per cell of all processes that train together, and per image, so that it does not grow with how crowded
        fields are.
    """
    strength = teacher.abs()
    places = strength.mean(1)
    where = (places.flatten(1) / temperature).softmax(1).view_as(places) * places[0].numel()
    which = (strength.mean((2, 3)) / temperature).softmax(1)  # sums to 1, so that it is a mean over channels
    difference = (which[:, :, None, None] * (student - teacher).square()).sum(1) * where
    inside = compute_weighted_mean(difference, cells)
    return inside + outside_weight * (difference * outside).sum() / len(student)


def weigh_cells(label_image: Tensor, *, stride: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """How much each place of a feature map belongs to cells, and to none.

    Args:
        label_image: (B, H, W) int32, 0 = background.
        stride: px per place.
        height: of the map; what lies beyond the image is neither.
        width: of the map.

    Returns:
        Two of (B, height, width) float32: the sum of each cell over all its places is 1, and of all background 1 for
        each image that has some.
    """
    weights = torch.stack([_weigh_image(labels) for labels in label_image])
    rows, columns = height * stride, width * stride
    weights = F.pad(weights, (0, max(columns - weights.shape[-1], 0), 0, max(rows - weights.shape[-2], 0)))
    pooled = F.avg_pool2d(weights[..., :rows, :columns], stride) * stride**2
    return pooled[:, 0], pooled[:, 1]


def _weigh_image(labels: Tensor) -> Tensor:
    """(2, H, W): 1 / area of the pixel's cell, and 1 / area of all background."""
    flat = labels.flatten().long()
    areas = torch.bincount(flat)
    shares = 1 / areas.clamp_min(1).float()
    each = shares[flat].view(labels.shape)
    is_cell = labels > 0
    return torch.stack([each * is_cell, each * ~is_cell])


def compute_attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar difference of where two nets look: mean over maps of the squared distance of the maps, each of length 1.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017). 0, with a gradient, without maps.

    Args:
        student: (R, 1, S, S) from 0 up.
        teacher: the same, of the teacher.
    """
    found, wanted = (F.normalize(maps.flatten(1), dim=1, eps=TINY) for maps in (student, teacher))
    return (found - wanted).square().sum() / max(len(student), 1)
