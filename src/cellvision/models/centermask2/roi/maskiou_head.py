"""The layers that judge a drawn mask, and what they learn: its overlap with the true one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.models.backbones.blocks import Concatenate
from cellvision.ops.loss_term import compute_weighted_mean

LARGEST = 5.0
"""Difference of overlaps up to which the loss is that of the published nets."""


class MaskIouHead(nn.Module):
    """The expected intersection over union of a mask with the true one, for every class; unbounded.

    Huang et al., "Mask Scoring R-CNN" (2019): the class score says how sure the net is that there is a cell, not how
    well it was drawn.
    """

    def __init__(
        self, *, in_channels: int, width: int, class_count: int, side: int = 14, conv_count: int = 4, hidden: int = 1024
    ) -> None:
        """Build the layers.

        Args:
            in_channels: of the pyramid.
            width: channels of the convolutions; 256, in the lite nets 128.
            class_count: K, cell classes.
            side: S, px of the pooled features, even.
            conv_count: 3 x 3 convolutions, the last with stride 2; >= 1; 2 in the lite nets.
            hidden: width of the two hidden layers; they hold most weights of a lite net.
        """
        super().__init__()
        self.conv_count = conv_count
        self.halve = nn.MaxPool2d(2)
        self.concatenate = Concatenate()
        self.relus = nn.ModuleList(nn.ReLU(inplace=True) for _ in range(conv_count))
        self.flatten, self.fc1_relu, self.fc2_relu = nn.Flatten(), nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        for index in range(conv_count):
            stride = 2 if index == conv_count - 1 else 1
            conv = nn.Conv2d(in_channels + 1 if index == 0 else width, width, 3, stride=stride, padding=1)
            self.add_module(f"maskiou_fcn{index + 1}", conv)
        self.maskiou_fc1 = nn.Linear(width * ((side + 1) // 2) ** 2, hidden)
        self.maskiou_fc2 = nn.Linear(hidden, hidden)
        self.maskiou = nn.Linear(hidden, class_count)
        for layer in self.children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                # By what a layer sees, not by what it gives: the first linear one sees 6,000 to 12,000 values.
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.maskiou.weight, std=0.01)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """(R, K) of (R, C, S, S) pooled features and (R, 1, 2 S, 2 S) mask probabilities of the region's class."""
        maps = self.concatenate([features, self.halve(masks).to(features.dtype)])
        for index in range(self.conv_count):
            maps = self.relus[index](self.get_submodule(f"maskiou_fcn{index + 1}")(maps))
        hidden = self.fc1_relu(self.maskiou_fc1(self.flatten(maps)))
        return self.maskiou(self.fc2_relu(self.maskiou_fc2(hidden)))


def compute_mask_ious(logits: Tensor, masks: Tensor, inside_share: Tensor) -> Tensor:
    """Intersection over union of drawn and true masks, what lies outside the box included.

    Args:
        logits: (R, M, M), drawn where above 0.
        masks: (R, M, M) bool, true inside the box.
        inside_share: (R,) float32 in 0..1, the part of each true mask that lies inside the box.

    Returns:
        (R,) float32 in 0..1.
    """
    drawn = logits > 0
    shared = (drawn & masks).sum((1, 2)).float()
    true_area = masks.sum((1, 2)) / inside_share.clamp(1e-10, 1)
    return shared / (drawn.sum((1, 2)) + true_area - shared).clamp_min(1)


def compute_maskiou_loss(found: Tensor, truth: Tensor) -> Tensor:
    """Scalar half mean squared difference over the regions with any overlap; 0, with a gradient, where none has.

    Beyond LARGEST it no longer grows as the square (Huber). No prediction that means anything is that far off; in the
    first steps from random weights they are off by hundreds, and squared they left the other losses next to nothing of
    the clipped gradient. A mean over all processes that train together.

    Args:
        found: (R,) float32, predicted.
        truth: (R,) float32 in 0..1, of ``compute_mask_ious``.
    """
    differences = F.huber_loss(found, truth.to(found.dtype), reduction="none", delta=LARGEST)
    return compute_weighted_mean(differences, (truth > 0).to(found.dtype))
