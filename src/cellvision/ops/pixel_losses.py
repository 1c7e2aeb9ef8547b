"""Losses that are a mean over pixels; shapes as in ``loss_term``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cellvision.checks import check_range
from cellvision.errors import ConfigError, explain
from cellvision.ops.loss_term import TINY, ClassTerm, compute_weighted_mean


def compute_class_weights(class_pixels: Sequence[int]) -> tuple[float, ...]:
    """One weight per class by median frequency: median pixel count of the classes present / pixels of this class.

    Eigen and Fergus, "Predicting Depth, Surface Normals and Semantic Labels" (2015). A class without pixels gets 1:
    no training pixel will ask for it.

    Example:
        >>> compute_class_weights([800, 100, 50])
        (0.125, 1.0, 2.0)
    """
    present = sorted(count for count in class_pixels if count > 0)
    if not present:
        return (1.0,) * len(class_pixels)
    middle = len(present) // 2
    median = present[middle] if len(present) % 2 else (present[middle - 1] + present[middle]) / 2
    return tuple(median / count if count > 0 else 1.0 for count in class_pixels)


class PixelTerm(ClassTerm):
    """Mean over pixels of a loss per pixel, each pixel counted as much as its true class weighs."""

    class_weights: Tensor | None

    def __init__(
        self, *, activation: str, class_count: int, class_weights: Sequence[float] | str | None = None
    ) -> None:
        """``class_weights``: one per class, background first; "auto" for those of the training data; None for equal."""
        super().__init__(activation=activation, class_count=class_count)
        self.automatic = class_weights == "auto"
        self.register_buffer("class_weights", self._to_weights(class_weights))

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Scalar loss; the shapes are in the module's text.

        Raises:
            ConfigError: class weights are "auto" and no statistics have been set.
        """
        return compute_weighted_mean(self.pixel_losses(logits, target), self.pixel_weights(target, valid))

    def pixel_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B, H, W) cross-entropy under softmax, mean binary cross-entropy of the foreground classes under sigmoid."""
        if self.activation == "softmax":
            return -(target * self._compute_log_probabilities(logits)).sum(1)
        return F.binary_cross_entropy_with_logits(logits, target[:, 1:], reduction="none").mean(1)

    def pixel_weights(self, target: Tensor, valid: Tensor) -> Tensor:
        """(B, H, W) weight of every pixel, 0 where ignored."""
        if self.class_weights is None:
            return valid
        if self.automatic and bool(self.class_weights.isnan().any()):
            raise ConfigError(
                explain(
                    got=f'model.loss.{self.name}.class_weights is "auto" but the net has seen no training data',
                    need="the statistics of the training data",
                    hint="net.set_statistics(stats) before training",
                )
            )
        return (target * self.class_weights.view(1, -1, 1, 1)).sum(1) * valid

    def set_statistics(self, class_pixels: Sequence[int]) -> None:
        """Fill automatic class weights; given ones stay."""
        if self.automatic and self.class_weights is not None:
            self.class_weights.copy_(torch.tensor(compute_class_weights(class_pixels)))

    def _to_weights(self, given: Sequence[float] | str | None) -> Tensor | None:
        if given is None:
            return None
        if given == "auto":  # NaN until the statistics are known: a default would train unweighted and not say so
            return torch.full((self.class_count,), math.nan)
        key = f"model.loss.{self.name}.class_weights"
        if isinstance(given, str) or len(given) != self.class_count:
            raise ConfigError(
                explain(
                    got=f"{key}={given!r}",
                    need=f'"auto", null, or {self.class_count} numbers, background first',
                    hint=f"{key}=auto",
                )
            )
        for value in given:
            check_range(key, value, low=0, example=1.0)
        return torch.tensor([float(value) for value in given])


class CrossEntropy(PixelTerm):
    """Cross-entropy of mutually exclusive classes."""

    name = "ce"
    activations = ("softmax",)


class BinaryCrossEntropy(PixelTerm):
    """Binary cross-entropy, averaged over the foreground classes."""

    name = "bce"
    activations = ("sigmoid",)


class Focal(PixelTerm):
    """Cross-entropy scaled by (1 - p)^gamma, so that pixels already right count little.

    Lin et al., "Focal Loss for Dense Object Detection" (2017). ``class_weights`` take the place of its alpha.
    Under sigmoid it is summed over the foreground classes, as in the paper.
    """

    name = "focal"

    def __init__(
        self,
        *,
        activation: str,
        class_count: int,
        class_weights: Sequence[float] | str | None = None,
        gamma: float = 2.0,
    ) -> None:
        """``gamma`` >= 0; at 0 this is cross-entropy."""
        super().__init__(activation=activation, class_count=class_count, class_weights=class_weights)
        check_range("model.loss.focal.gamma", gamma, low=0, example=2.0)
        self.gamma = gamma

    def pixel_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B, H, W) focal loss."""
        log_right = self._compute_log_probabilities(logits)
        losses = target[:, -logits.shape[1] :] * self._scale(log_right)
        if self.activation == "sigmoid":
            losses = losses + (1 - target[:, 1:]) * self._scale(F.logsigmoid(-logits))
        return losses.sum(1)

    def _scale(self, log_right: Tensor) -> Tensor:
        # clamped because the slope of x^gamma at 0 is infinite for gamma < 1
        return -((1 - log_right.exp()).clamp_min(TINY) ** self.gamma) * log_right


class Boundary(PixelTerm):
    """Cross-entropy in which pixels near a class boundary count more.

    The idea of the weight map of Ronneberger et al., "U-Net" (2015), as a band instead of a Gaussian, and computed
    on the spot, so that it follows every augmentation. Boundaries between touching cells of one class are left to
    the distance map. The edge of an ignored region is no boundary.
    """

    name = "boundary"

    def __init__(
        self,
        *,
        activation: str,
        class_count: int,
        class_weights: Sequence[float] | str | None = None,
        radius_px: int = 3,
        strength: float = 5.0,
    ) -> None:
        """Pixels within ``radius_px`` (whole, >= 1) of a boundary weigh 1 + ``strength``, all others 1."""
        super().__init__(activation=activation, class_count=class_count, class_weights=class_weights)
        if not isinstance(radius_px, int) or radius_px < 1:
            key = "model.loss.boundary.radius_px"
            raise ConfigError(explain(got=f"{key}={radius_px!r}", need="a whole number from 1 up", hint=f"{key}=3"))
        check_range("model.loss.boundary.strength", strength, low=0, example=5.0)
        self.radius_px = radius_px
        self.strength = strength

    def pixel_weights(self, target: Tensor, valid: Tensor) -> Tensor:
        """(B, H, W) weight of every pixel, 0 where ignored."""
        return super().pixel_weights(target, valid) * (1 + self.strength * self.compute_band(target, valid))

    def compute_band(self, target: Tensor, valid: Tensor) -> Tensor:
        """(B, H, W) in 0..1: 1 where two classes lie within the square of half-width ``radius_px``."""
        mask = valid.unsqueeze(1)
        inside = self._dilate(target * mask)
        outside = self._dilate((1 - target) * mask)
        return (inside + outside - 1).clamp_min(0).amax(1)

    def _dilate(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 2 * self.radius_px + 1, stride=1, padding=self.radius_px)
