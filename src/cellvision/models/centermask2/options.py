"""What can be chosen about finding cells and learning to; every default is the number of the published nets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cellvision.errors import ConfigError, check_choice, explain
from cellvision.ops.box_losses import BOX_LOSSES


@dataclass(frozen=True, kw_only=True)
class FcosAssigning:
    """Which places of which pyramid level learn which cell.

    Attributes:
        sizes_of_interest: px; the longest distance from a place to a side of its box decides the level. The first
            level takes up to the first number, the next from there to the second, and so on: one number fewer than
            levels, rising.
        centre_sampling: only places near the centre of a box learn it, instead of all inside.
        radius: half side of that square around the centre, in strides of the level.
        max_positives: at most so many places per image learn a cell, those nearest to its centre, so that one
            crowded field does not outweigh the rest of a batch; None for all.
    """

    sizes_of_interest: tuple[float, ...] = (64, 128, 256, 512)
    centre_sampling: bool = True
    radius: float = 1.5
    max_positives: int | None = None

    def __post_init__(self) -> None:
        sizes, key = self.sizes_of_interest, "model.assigning.sizes_of_interest"
        are_numbers = all(isinstance(size, int | float) for size in sizes)
        if not are_numbers or not all(low < high for low, high in zip((0, *sizes), (*sizes, 1e8), strict=True)):
            raise ConfigError(
                explain(got=f"{key}={list(sizes)}", need="rising numbers above 0", hint=f"{key}=[64,128]")
            )
        _check_range("model.assigning.radius", self.radius, above=0, example=1.5)
        _check_count("model.assigning.max_positives", self.max_positives, or_none=True, example=1000)

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Smallest and largest distance in px of each level, both included."""
        return tuple(zip((-1, *self.sizes_of_interest), (*self.sizes_of_interest, 1e8), strict=True))


@dataclass(frozen=True, kw_only=True)
class FcosLosses:
    """How classes and boxes are learned.

    Attributes:
        alpha, gamma: of the focal loss (Lin et al. 2017): weight of cells against background, and how little what is
            already right counts.
        box_loss: one of BOX_LOSSES.
        smoothing: square strides added to intersection and union; 1 as published, 0 serves small cells better.
        class_weights: one per cell class; how much the class loss of a place that learns such a cell counts. Not
            those of boxes and masks, which the classes share. None for 1 each.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    box_loss: str = "giou"
    smoothing: float = 1.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_range("model.fcos_loss.alpha", self.alpha, low=0, high=1, example=0.25)
        _check_range("model.fcos_loss.gamma", self.gamma, low=0, example=2.0)
        check_choice("model.fcos_loss.box_loss", self.box_loss, BOX_LOSSES)
        _check_range("model.fcos_loss.smoothing", self.smoothing, low=0, example=0.0)
        for weight in self.class_weights or ():
            _check_range("model.fcos_loss.class_weights", weight, low=0, example=1.0)


@dataclass(frozen=True, kw_only=True)
class FcosDecoding:
    """How predictions become boxes.

    Attributes:
        score_threshold: a candidate's class probability is above it; in 0..1.
        nms_iou: of two boxes of a class that overlap more, the worse is left out; in 0..1.
        pre_nms: at most so many candidates per level.
        post_nms: at most so many boxes per image. 50 as published; crowded fields hold thousands of cells.
        threshold_with_centreness: compare class probability times centre-ness with the threshold.
        soft_nms_sigma: let overlapped boxes fade instead (see ``suppress_softly``), and leave out those that fade below
            ``score_threshold``; None for the hard rule.
    """

    score_threshold: float = 0.05
    nms_iou: float = 0.6
    pre_nms: int = 1000
    post_nms: int = 50
    threshold_with_centreness: bool = False
    soft_nms_sigma: float | None = None

    def __post_init__(self) -> None:
        _check_range("model.decoding.score_threshold", self.score_threshold, low=0, high=1, example=0.05)
        _check_range("model.decoding.nms_iou", self.nms_iou, low=0, high=1, example=0.6)
        _check_count("model.decoding.pre_nms", self.pre_nms, example=1000)
        _check_count("model.decoding.post_nms", self.post_nms, example=50)
        if self.soft_nms_sigma is not None:
            _check_range("model.decoding.soft_nms_sigma", self.soft_nms_sigma, above=0, example=0.5)


@dataclass(frozen=True, kw_only=True)
class RoiSampling:
    """Which boxes the mask branch learns from.

    Attributes:
        per_image, positive_fraction: of at most ``per_image`` boxes, this share may lie on a cell. Boxes beside any
            cell teach a mask nothing and are not drawn at all, so that only the product counts.
        iou: a box lies on a cell when they overlap by at least this much; above 0, at most 1.
        append_truth: the true boxes take part too, or an untrained net would have nothing to learn masks from.
    """

    per_image: int = 512
    positive_fraction: float = 0.25
    iou: float = 0.5
    append_truth: bool = True

    def __post_init__(self) -> None:
        _check_count("model.roi_sampling.per_image", self.per_image, example=512)
        _check_range("model.roi_sampling.positive_fraction", self.positive_fraction, above=0, high=1, example=0.25)
        _check_range("model.roi_sampling.iou", self.iou, above=0, high=1, example=0.5)

    @property
    def max_positives(self) -> int:
        """At most so many boxes per image."""
        return int(self.per_image * self.positive_fraction)


@dataclass(frozen=True, kw_only=True)
class MaskLosses:
    """How masks are learned.

    Attributes:
        dice, boundary: weights of these terms beside the binary cross-entropy; 0 leaves a term out.
        maskiou_weight: weight of the loss of the predicted mask quality.
    """

    dice: float = 0.0
    boundary: float = 0.0
    maskiou_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("dice", "boundary", "maskiou_weight"):
            _check_range(f"model.mask_loss.{name}", getattr(self, name), low=0, example=1.0)


def _check_range(
    key: str,
    value: float,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    example: float,
) -> None:
    """Raise ConfigError unless ``value`` is a finite number from ``low``, or above ``above``, up to ``high``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (low <= value <= high and above < value < math.inf):
        start = f"above {above}" if above > low else f"from {low}"
        end = "" if high == math.inf else f" to {high}"
        raise ConfigError(explain(got=f"{key}={value!r}", need=f"a number {start}{end}", hint=f"{key}={example}"))


def _check_count(key: str, value: int | None, *, or_none: bool = False, example: int) -> None:
    """Raise ConfigError unless ``value`` is a whole number from 1 up, or None where that is allowed."""
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(explain(got=f"{key}={value!r}", need="a whole number from 1 up", hint=f"{key}={example}"))
