"""The layers that predict, at every place of every pyramid level, a class, a box and how central the place is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, check_choice, explain

HEAD_NORMS = ("group", "none")


@dataclass(frozen=True, kw_only=True, eq=False)
class FcosOutputs:
    """What the head predicts, one entry per pyramid level, finest first; K cell classes, without a background.

    Attributes:
        class_logits: (B, K, H, W), before the sigmoid.
        ltrb: (B, 4, H, W) >= 0: distances to the left, top, right and bottom side of the box, in strides of the level.
        centreness_logits: (B, 1, H, W), before the sigmoid.
    """

    class_logits: tuple[Tensor, ...]
    ltrb: tuple[Tensor, ...]
    centreness_logits: tuple[Tensor, ...]


class Scale(nn.Module):
    """A learned factor: the levels share all other layers, but not how large a cell is in their strides."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, maps: Tensor) -> Tensor:
        """The maps times the factor."""
        return maps * self.scale


class FcosHead(nn.Module):
    """The head of FCOS (Tian et al. 2019) with centre-ness on the box branch; the same layers for every level.

    Group normalisation is over the whole padded map, so that a cell's score depends a little on what else is in view
    and on the padding.
    """

    def __init__(
        self,
        *,
        channels: int,
        class_count: int,
        level_count: int,
        class_convs: int = 4,
        box_convs: int = 4,
        shared_convs: int = 0,
        norm: str = "group",
        prior: float = 0.01,
    ) -> None:
        """Build the layers.

        Args:
            channels: of the pyramid; even.
            class_count: K, cell classes.
            level_count: L, pyramid levels.
            class_convs: 3 x 3 convolutions of the class branch; 2 in the lite nets.
            box_convs: the same of the branch of box and centre-ness.
            shared_convs: 3 x 3 convolutions before the branches part.
            norm: one of HEAD_NORMS.
            prior: class probability that an untrained net gives everywhere; small, or background swamps the first
                steps.

        Raises:
            ConfigError: the norm is unknown or does not fit the channels.
        """
        super().__init__()
        check_choice("model.head_norm", norm, HEAD_NORMS)
        self.share_tower = _build_tower(channels, shared_convs, norm)
        self.cls_tower = _build_tower(channels, class_convs, norm)
        self.bbox_tower = _build_tower(channels, box_convs, norm)
        self.cls_logits = nn.Conv2d(channels, class_count, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.ctrness = nn.Conv2d(channels, 1, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.scales = nn.ModuleList(Scale() for _ in range(level_count))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                _fill_bias(layer, 0.0)
        _fill_bias(self.cls_logits, -math.log((1 - prior) / prior))

    @property
    def class_count(self) -> int:
        """K, cell classes."""
        return self.cls_logits.out_channels

    def forward(self, pyramid: Sequence[Tensor]) -> FcosOutputs:
        """Predictions for L maps (B, channels, H, W), finest first."""
        found = [self._predict(maps, scale) for maps, scale in zip(pyramid, self.scales, strict=True)]
        class_logits, ltrb, centreness_logits = zip(*found, strict=True)
        return FcosOutputs(class_logits=class_logits, ltrb=ltrb, centreness_logits=centreness_logits)

    def _predict(self, maps: Tensor, scale: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.share_tower(maps)
        boxes = self.bbox_tower(shared)
        ltrb = self.relu(scale(self.bbox_pred(boxes)))
        return self.cls_logits(self.cls_tower(shared)), ltrb, self.ctrness(boxes)


def _build_tower(channels: int, length: int, norm: str) -> nn.Sequential:
    """``length`` times convolution, normalisation, ReLU; the positions in the sequence are part of weight names."""
    layers: list[nn.Module] = []
    for _ in range(length):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        if norm == "group":
            layers.append(_build_group_norm(channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _build_group_norm(channels: int) -> nn.GroupNorm:
    """32 groups where that leaves two channels or more for each, else fewer.

    The last level can be a single pixel, where a group of one channel has no spread and torch refuses it.
    """
    if channels % 2:
        got, need = f"model.fpn_channels={channels} for model.head_norm=group", "an even number"
        raise ConfigError(explain(got=got, need=need, hint=f"model.fpn_channels={channels + 1}"))
    return nn.GroupNorm(32 if channels % 32 == 0 and channels > 32 else math.gcd(channels // 2, 32), channels)


def _fill_bias(layer: nn.Conv2d, value: float) -> None:
    nn.init.constant_(layer.bias, value)  # type: ignore[arg-type]
