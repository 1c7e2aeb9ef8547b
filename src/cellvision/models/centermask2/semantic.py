"""A semantic branch on the feature pyramid, trained jointly with the detector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.ops.losses import WeightedLoss
from cellvision.types import Targets

MOST_GROUPS = 32


class SemanticBranch(nn.Module):
    """Class logits of every pixel from the finer levels of a feature pyramid.

    After the semantic branch of Kirillov et al., "Panoptic feature pyramid networks" (2019, arXiv 1901.02446): each
    level is convolved and enlarged step by step to the finest one, the levels are added, and one convolution gives the
    logits. Trained by cross-entropy and a soft IoU loss (Rahman and Wang 2016), which is Tversky with both weights 1.

    Example:
        >>> import torch
        >>> branch = SemanticBranch(strides={3: 8, 4: 16}, in_channels=32, width=32, classes=3)
        >>> branch({3: torch.zeros(1, 32, 8, 6), 4: torch.zeros(1, 32, 4, 3)}, size=(60, 41)).shape
        torch.Size([1, 3, 60, 41])
    """

    def __init__(
        self, *, strides: Mapping[int, int], in_channels: int, width: int, classes: int, weight: float = 0.5
    ) -> None:
        """Build the branch.

        Args:
            strides: of the levels used, in px, finest first, each twice the one before.
            in_channels: of each level.
            width: channels inside; even.
            classes: K, background included.
            weight: of both losses.
        """
        super().__init__()
        self.strides = dict(strides)
        self.towers = nn.ModuleList(
            _build_tower(in_channels, width, enlargements=steps) for steps in range(len(self.strides))
        )
        self.predictor = nn.Conv2d(width, classes, 1)
        terms = {"ce": {"weight": weight}, "tversky": {"weight": weight, "alpha": 1.0, "beta": 1.0}}
        self.loss = WeightedLoss(terms, class_count=classes)

    def forward(self, pyramid: Mapping[int, Tensor], *, size: tuple[int, int]) -> Tensor:
        """(B, K, H, W) logits of an image of ``size`` (H, W), which the pyramid covers and may exceed."""
        finest, *coarser = (tower(pyramid[level]) for level, tower in zip(self.strides, self.towers, strict=True))
        total = finest
        for found in coarser:  # a level of odd size is rounded up when it is halved
            total = total + found[..., : finest.shape[-2], : finest.shape[-1]]
        scale = next(iter(self.strides.values()))
        logits = F.interpolate(self.predictor(total), scale_factor=scale, mode="bilinear", align_corners=False)
        return logits[..., : size[0], : size[1]]

    def losses(self, logits: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses "semantic_ce" and "semantic_iou", already weighted; pixels of class IGNORE do not count."""
        found = self.loss({"classes": logits}, targets)
        return {"semantic_ce": found["ce"], "semantic_iou": found["tversky"]}


def _build_tower(in_channels: int, width: int, *, enlargements: int) -> nn.Sequential:
    """Convolution, GroupNorm and ReLU, enlarged by two after each, as often as the level is coarser than the finest."""
    steps: list[nn.Module] = []
    channels = [in_channels] + [width] * max(1, enlargements)
    for before, after in pairwise(channels):
        steps += [nn.Conv2d(before, after, 3, padding=1, bias=False), _build_norm(after), nn.ReLU()]
        if enlargements:
            steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*steps)


def _build_norm(channels: int) -> nn.GroupNorm:
    """Groups of two channels or more: on a map of one pixel a group of one has no spread, and torch refuses it."""
    return nn.GroupNorm(math.gcd(channels // 2, MOST_GROUPS), channels)
