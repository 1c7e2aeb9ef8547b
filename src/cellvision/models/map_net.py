"""What nets that say something of every pixel have in common: their results, their losses, and the settings of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, check_choice, explain
from cellvision.models.base import MAP_KINDS, NetSpec, SegNet
from cellvision.models.preprocess import Normalize
from cellvision.ops.loss_term import ACTIVATIONS
from cellvision.ops.losses import WeightedLoss
from cellvision.types import DataStats, Targets

LossTerms = Mapping[str, Mapping[str, Any] | None]


class MapNet(SegNet):
    """A net whose finest feature map, at full resolution, becomes classes and, for viability, distances.

    A net of this kind gives ``features``, finest first, and calls ``_build_head`` when its other layers are made.

    Attributes:
        head: from the finest feature map to class logits and, behind them, the distance.
        activation: one of ACTIVATIONS.
        has_distance: whether there is a distance map.
        class_outputs: channels of class logits.
        config: plain data for ``build_model``, which sets it.
    """

    config: dict[str, Any]
    head: nn.Conv2d
    loss: WeightedLoss

    def __init__(self, *, in_channels: int, classes: Sequence[str], kind: str, activation: str, dropout: float) -> None:
        """Check what all these nets are asked for, and begin; arguments as of UNet."""
        super().__init__()
        _check_plain(in_channels, classes, dropout)
        check_choice("model.kind", kind, MAP_KINDS)
        check_choice("model.activation", activation, ACTIVATIONS)
        _check_kind(kind, classes, activation)
        self.classes, self.kind, self.activation = tuple(classes), kind, activation
        self.has_distance = kind == "viability"
        self.class_outputs = len(classes) - (activation == "sigmoid")
        self.normalize = Normalize(in_channels)
        self.dropout = nn.Dropout2d(dropout)

    def _build_head(self, name: str, width: int, loss: LossTerms | None, *, stride: int, tiles: bool) -> None:
        """Add the last layer, for a finest map of ``width`` channels, the loss, and what the net declares."""
        self.head = nn.Conv2d(width, self.class_outputs + self.has_distance, 1)
        self.loss = _build_loss(loss, len(self.classes), self.activation, self.has_distance)
        self.spec = NetSpec(
            name=name,
            kind=self.kind,
            in_channels=len(self.normalize.offset),
            classes=self.classes,
            stride=stride,
            outputs=("probabilities", "distance") if self.has_distance else ("probabilities",),
            tiles=tiles,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Probabilities, and for viability distances; see SegNet."""
        return self.decode(self.logits(images))

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """What ``decode`` and ``losses_from`` start from, so that validation runs the net once for both.

        Args:
            images: (B, C, H, W) raw counts.

        Returns:
            "classes" (B, K, H, W), under sigmoid (B, K-1, H, W); for viability also "distance" (B, 1, H, W).
        """
        height, width = images.shape[-2:]
        finest = next(iter(self.features(images).values()))
        found = self.head(self.dropout(finest))[..., :height, :width]
        logits = {"classes": found[:, : self.class_outputs]}
        if self.has_distance:
            logits["distance"] = found[:, self.class_outputs :]
        return logits

    def decode(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The results of ``forward`` from those of ``logits``: float32 in 0..1."""
        classes = logits["classes"].float()
        if self.activation == "softmax":
            results = {"probabilities": _softmax(classes)}
        else:
            foreground = classes.sigmoid()
            results = {"probabilities": torch.cat([1 - foreground.amax(1, keepdim=True), foreground], dim=1)}
        if self.has_distance:
            results["distance"] = logits["distance"].float().sigmoid()
        return results

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses, already weighted."""
        return self.losses_from(self.logits(images), targets)

    def losses_from(self, logits: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The same, from the results of ``logits``."""
        return self.loss(logits, targets)

    def set_statistics(self, stats: DataStats) -> None:
        """Take normalisation and automatic class weights from the training data."""
        self.normalize.set_statistics(stats)
        self.loss.set_statistics(stats.class_pixels)


def check_rules(*rules: tuple[bool, str, str, str]) -> None:
    """Raise ConfigError for the first rule (holds, got, need, hint) on settings of the model that does not hold."""
    for holds, got, need, hint in rules:
        if not holds:
            raise ConfigError(explain(got=f"model.{got}", need=need, hint=f"model.{hint}"))


def is_count(value: object) -> bool:
    """Whether a setting is a whole number from 1 up."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def are_counts(values: object, *, least: int) -> bool:
    """Whether a setting is a list of at least so many whole numbers from 1 up."""
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and len(values) >= least
        and all(map(is_count, values))
    )


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the channels, in single steps: as one node ONNX Runtime takes six times as long over that axis."""
    exponentials = (logits - logits.amax(1, keepdim=True)).exp()
    return exponentials / exponentials.sum(1, keepdim=True)


def _build_loss(given: LossTerms | None, class_count: int, activation: str, has_distance: bool) -> WeightedLoss:
    """The loss from its terms, or cross-entropy + Dice (+ distance) where none are given."""
    default: LossTerms = {"ce" if activation == "softmax" else "bce": {"weight": 1.0}, "dice": {"weight": 1.0}}
    if has_distance:
        default = {**default, "distance": {"weight": 5.0}}
    terms = default if given is None else given
    return WeightedLoss(terms, class_count=class_count, activation=activation, has_distance=has_distance)


def _check_plain(in_channels: int, classes: Sequence[str], dropout: float) -> None:
    names_fit = not isinstance(classes, str) and len(set(classes)) == len(classes) >= 2
    check_rules(
        (is_count(in_channels), f"in_channels={in_channels!r}", "a whole number from 1 up", "in_channels=1"),
        (
            names_fit,
            f"classes={classes!r}",
            "two or more different names, background first",
            "classes=[background,cell]",
        ),
        (0 <= dropout < 1, f"dropout={dropout!r}", "a number from 0 up and below 1", "dropout=0.1"),
    )


def _check_kind(kind: str, classes: Sequence[str], activation: str) -> None:
    has_live_dead = {"live", "dead"} <= set(classes)
    viable = "for model.kind=viability"
    check_rules(
        (
            kind == "semantic" or has_live_dead,
            f"classes={classes!r}",
            f"live and dead among them {viable}",
            "kind=semantic",
        ),
        (
            kind == "semantic" or activation == "softmax",
            f"activation={activation}",
            f"softmax {viable}",
            "kind=semantic",
        ),
    )
