"""What a net that says something of every pixel learns from the maps of another one.

All are 0 where student and teacher agree and computed in the dtype given, which should be float32. Temperatures divide
logits before they are compared; the loss is multiplied by their square, so that its slope does not depend on them
(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cellvision.ops.loss_term import compute_weighted_mean

SMALLEST = 1e-6
"""Probabilities are at least as far from 0 and 1 before logits are made of them: an exported net rounds beyond."""


def compute_softmax_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """How far the student's classes of each pixel are from the teacher's: KL(teacher || student) times temperature^2.

    Hinton et al. (2015), for every pixel.

    Args:
        student: (B, K, H, W) logits.
        teacher: the same, of the teacher.
        temperature: above 0; above 1 the classes that the teacher holds for less likely count for more.

    Returns:
        (B, H, W) from 0 up, in nats.
    """
    found = F.log_softmax(student / temperature, dim=1)
    wanted = F.log_softmax(teacher / temperature, dim=1)
    return (wanted.exp() * (wanted - found)).sum(1) * temperature**2


def compute_sigmoid_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The same for logits that each stand for a yes or no of their own.

    Args:
        student: logits of any equal shape.
        teacher: the same, of the teacher.
        temperature: above 0.

    Returns:
        Of the same shape, from 0 up, in nats.
    """
    found, wanted = student / temperature, teacher / temperature
    sure = wanted.sigmoid()
    # The cross-entropy less the teacher's own entropy, each in the form that no logit overflows.
    difference = F.softplus(found) - F.softplus(wanted) - sure * (found - wanted)
    return difference * temperature**2


def compute_class_divergence(student: Tensor, teacher: Tensor, *, activation: str, temperature: float) -> Tensor:
    """(B, H, W) divergence of (B, K, H, W) class logits under "softmax", or of (B, K-1, H, W) under "sigmoid"."""
    if activation == "softmax":
        return compute_softmax_divergence(student, teacher, temperature=temperature)
    return compute_sigmoid_divergence(student, teacher, temperature=temperature).sum(1)


def find_boundary(label_image: Tensor, *, radius_px: int = 1) -> Tensor:
    """Where cells end: the pixels with another label, or background, within ``radius_px`` along both axes.

    Pixels between cells that touch are among them, which a map of classes does not show. These are the pixels that
    Ronneberger et al., "U-Net" (2015) weigh more, and that small nets get wrong.

    Args:
        label_image: (B, H, W) integers.
        radius_px: 1 or more; 1 gives a band of 2 px.

    Returns:
        (B, H, W) bool.
    """
    labels = label_image.to(torch.float32).unsqueeze(1)  # exact up to 16 million cells
    side = 2 * radius_px + 1
    largest = F.max_pool2d(labels, side, stride=1, padding=radius_px)
    smallest = -F.max_pool2d(-labels, side, stride=1, padding=radius_px)
    return (largest != smallest).squeeze(1)


def find_valid(images: Tensor, sizes: tuple[tuple[int, int], ...] | None) -> Tensor:
    """(B, H, W) float32 of (B, C, H, W) images: 1 where there is an image, 0 where it was padded to fill the batch.

    Pixels without a true class count: the teacher has an opinion of them too.
    """
    valid = torch.ones_like(images[:, 0], dtype=torch.float32)
    for at, (height, width) in enumerate(sizes or ()):
        valid[at, height:] = 0
        valid[at, :, width:] = 0
    return valid


def compute_distance_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Scalar difference of two distance maps: squared within a tenth of their range, absolute beyond.

    The form in which the net learns true distances (`cellvision.ops.losses.Distance`). Pixels that the teacher puts
    into a cell weigh as much as all others together, or the background would decide.

    Args:
        student: (B, 1, H, W) logits.
        teacher: (B, 1, H, W) logits.
        valid: (B, H, W) 1 or 0.
    """
    wanted = teacher.sigmoid()
    losses = F.smooth_l1_loss(student.sigmoid(), wanted, beta=0.1, reduction="none").squeeze(1)
    inside = (wanted.squeeze(1) > 0.1).to(losses.dtype) * valid
    return (compute_weighted_mean(losses, inside) + compute_weighted_mean(losses, valid - inside)) / 2


def to_logits(probabilities: Tensor, activation: str) -> Tensor:
    """The logits that give (B, K, H, W) probabilities in 0..1, background first.

    Under "softmax" (B, K, H, W): their logarithms, which are the logits but for a constant per pixel, and so right at
    any temperature. Under "sigmoid" (B, K-1, H, W), of the foreground classes. To SMALLEST exact.
    """
    if activation == "softmax":
        return (probabilities / probabilities.sum(1, keepdim=True)).clamp_min(SMALLEST).log()
    return probabilities[:, 1:].clamp(SMALLEST, 1 - SMALLEST).logit()
