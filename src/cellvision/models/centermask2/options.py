"""What can be chosen about finding cells and learning to; every default is the number of the published nets.

Each group of options knows its ``key`` in the settings of a net, so that its errors name what the user wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cellvision.checks import check_count, check_numbers, check_range, check_rising, check_switch, refuse
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

    key: ClassVar[str] = "model.assigning"

    sizes_of_interest: tuple[float, ...] = (64, 128, 256, 512)
    centre_sampling: bool = True
    radius: float = 1.5
    max_positives: int | None = None

    def __post_init__(self) -> None:
        check_rising(f"{self.key}.sizes_of_interest", self.sizes_of_interest)
        check_switch(f"{self.key}.centre_sampling", self.centre_sampling)
        check_range(f"{self.key}.radius", self.radius, above=0, example=1.5)
        check_count(f"{self.key}.max_positives", self.max_positives, or_none=True, example=1000)

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
        smoothing: square strides added to intersection and union; 1 as published, 0 is the loss as it is defined.
        class_weights: one per cell class; how much the class loss of a place that learns such a cell counts. Not
            those of boxes and masks, which the classes share. None for 1 each. There is no "auto": about as many
            places learn a small cell as a large one, so that weights would have to come from cells per class, and the
            statistics of the training data are pixels per class. Of one set of live and dead cells 4.4 times as many
            were live, but 6.5 times as many pixels: weights from pixels would be half too large for the dead.
    """

    key: ClassVar[str] = "model.fcos_loss"

    alpha: float = 0.25
    gamma: float = 2.0
    box_loss: str = "giou"
    smoothing: float = 1.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_range(f"{self.key}.alpha", self.alpha, low=0, high=1, example=0.25)
        check_range(f"{self.key}.gamma", self.gamma, low=0, example=2.0)
        check_choice(f"{self.key}.box_loss", self.box_loss, BOX_LOSSES)
        check_range(f"{self.key}.smoothing", self.smoothing, low=0, example=0.0)
        if self.class_weights == "auto":
            need = (
                "numbers, one per cell class (pixels per class, which are known of the data, are not cells per class)"
            )
            raise refuse(f"{self.key}.class_weights", "auto", need=need, example="[1.0,2.0]")
        if self.class_weights is not None:
            check_numbers(f"{self.key}.class_weights", self.class_weights, low=0, what="one per cell class")


@dataclass(frozen=True, kw_only=True)
class FcosDecoding:
    """How predictions become boxes.

    Attributes:
        score_threshold: a candidate's class probability is above it; in 0..1.
        nms_iou: of two boxes of a class that overlap more, the worse is left out; in 0..1.
        pre_nms: at most so many candidates per level; None for 9 times ``post_nms``. A cell has some 9 in a level:
            the places within 1.5 strides of its centre, if `FcosAssigning.radius` is 1.5, which learn it.
        post_nms: at most so many boxes per image. 50 as published; crowded fields hold thousands of cells.
        threshold_with_centreness: compare class probability times centre-ness with the threshold.
        soft_nms_sigma: let overlapped boxes fade instead (see ``suppress_softly``), and leave out those that fade below
            ``score_threshold``; None for the hard rule.
    """

    key: ClassVar[str] = "model.decoding"

    score_threshold: float = 0.05
    nms_iou: float = 0.6
    pre_nms: int | None = None
    post_nms: int = 50
    threshold_with_centreness: bool = False
    soft_nms_sigma: float | None = None

    def __post_init__(self) -> None:
        check_range(f"{self.key}.score_threshold", self.score_threshold, low=0, high=1, example=0.05)
        check_range(f"{self.key}.nms_iou", self.nms_iou, low=0, high=1, example=0.6)
        check_count(f"{self.key}.pre_nms", self.pre_nms, or_none=True, example=9000)
        check_count(f"{self.key}.post_nms", self.post_nms, example=50)
        check_switch(f"{self.key}.threshold_with_centreness", self.threshold_with_centreness)
        if self.soft_nms_sigma is not None:
            check_range(f"{self.key}.soft_nms_sigma", self.soft_nms_sigma, above=0, example=0.5)

    @property
    def candidates(self) -> int:
        """At most so many in a level.

        Example:
            >>> FcosDecoding(post_nms=1000).candidates, FcosDecoding(pre_nms=2000, post_nms=1000).candidates
            (9000, 2000)
        """
        return 9 * self.post_nms if self.pre_nms is None else self.pre_nms


@dataclass(frozen=True, kw_only=True)
class ProposalDecoding(FcosDecoding):
    """How predictions become the boxes that the mask branch learns from."""

    key: ClassVar[str] = "model.proposals"

    pre_nms: int | None = 1000


@dataclass(frozen=True, kw_only=True)
class RoiSampling:
    """Which boxes the mask branch learns from.

    Attributes:
        per_image, positive_fraction: of at most ``per_image`` boxes, this share may lie on a cell. Boxes beside any
            cell teach a mask nothing and are not drawn at all, so that only the product counts.
        iou: a box lies on a cell when they overlap by at least this much; above 0, at most 1.
        append_truth: the true boxes take part too, or an untrained net would have nothing to learn masks from.
    """

    key: ClassVar[str] = "model.roi_sampling"

    per_image: int = 512
    positive_fraction: float = 0.25
    iou: float = 0.5
    append_truth: bool = True

    def __post_init__(self) -> None:
        check_count(f"{self.key}.per_image", self.per_image, example=512)
        check_range(f"{self.key}.positive_fraction", self.positive_fraction, above=0, high=1, example=0.25)
        if self.max_positives < 1:
            got = f"{self.key}.per_image={self.per_image} with {self.key}.positive_fraction={self.positive_fraction}"
            need, hint = "a product of 1 or more, or no mask is learned", f"{self.key}.per_image=512"
            raise ConfigError(explain(got=got, need=need, hint=hint))
        check_range(f"{self.key}.iou", self.iou, above=0, high=1, example=0.5)
        check_switch(f"{self.key}.append_truth", self.append_truth)

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

    key: ClassVar[str] = "model.mask_loss"

    dice: float = 0.0
    boundary: float = 0.0
    maskiou_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("dice", "boundary", "maskiou_weight"):
            check_range(f"{self.key}.{name}", getattr(self, name), low=0, example=1.0)


@dataclass(frozen=True, kw_only=True)
class Semantic:
    """A semantic branch trained with the detector.

    Attributes:
        width: channels inside; even.
        weight: of its losses.
    """

    key: ClassVar[str] = "model.semantic"

    width: int = 128
    weight: float = 0.5

    def __post_init__(self) -> None:
        check_count(f"{self.key}.width", self.width, example=128)
        if self.width % 2:
            need = "an even number, for two channels or more in each group of its norms"
            raise refuse(f"{self.key}.width", self.width, need=need, example=self.width + 1)
        check_range(f"{self.key}.weight", self.weight, low=0, example=0.5)
