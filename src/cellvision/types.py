"""The records that travel between the parts; every shape, dtype and range is documented here once.

Shape letters, one legend for the library: B batch, C channels, H W pixels, N cells, K classes (background first).
Images are raw counts everywhere: normalisation belongs to the net, so that nothing can forget it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cellvision.errors import DataError, explain

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE = 255
"""Class id of pixels and cells that take no part in losses and scores (crowd, "uncertain")."""

IMAGE_DTYPES = ("uint8", "uint16", "float32")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One field of view with its truth.

    Attributes:
        name: unique within the data set; the file stem where there is one.
        group: fields that show the same thing (tiles of one scan, one well) share it; a split never divides it.
        image: (C, H, W) uint8, uint16 or float32, raw counts.
        label_image: (H, W) int32, 0 = background, 1..N = one cell each; gaps in numbering are fine.
        cell_classes: (N,) int64; entry i is the class of label i + 1, in 1..K-1, or IGNORE.
        pixel_size_um: edge of a pixel in micrometres, or None where unknown.
    """

    name: str
    group: str
    image: np.ndarray
    label_image: np.ndarray
    cell_classes: np.ndarray
    pixel_size_um: float | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.dtype.name not in IMAGE_DTYPES:
            raise DataError(
                explain(
                    got=f"{self.name}: image is {self.image.dtype} of shape {self.image.shape}",
                    need=f"(channels, height, width) of {', '.join(IMAGE_DTYPES)}",
                    hint="read it with cellvision.data.images.read_image",
                )
            )
        if self.label_image.shape != self.image.shape[1:]:
            raise DataError(
                explain(
                    got=f"{self.name}: image is {self.image.shape[1:]} px but its labels are {self.label_image.shape}",
                    need="equal height and width",
                    hint="check that image and label file belong together",
                )
            )
        if self.label_image.size and int(self.label_image.max()) > len(self.cell_classes):
            raise DataError(
                explain(
                    got=f"{self.name}: label {int(self.label_image.max())} but only {len(self.cell_classes)} classes",
                    need="one class per label",
                    hint="complete the class table",
                )
            )

    @property
    def class_map(self) -> np.ndarray:
        """(H, W) uint8: class of every pixel, 0 = background, IGNORE where the cell's class is IGNORE."""
        return np.concatenate([[0], self.cell_classes]).astype(np.uint8)[self.label_image]


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What a net learns from one batch.

    Attributes:
        class_map: (B, H, W) int64, 0..K-1 or IGNORE.
        distance: (B, H, W) float32 in 0..1: distance to the nearest pixel outside the own cell, divided by the
            cell's largest such distance; 0 on background, and everywhere for nets that learn none.
        label_image: (B, H, W) int32, 0 = background.
        cell_classes: one (N,) int64 per image, as in Sample.
        soft_classes: (B, K, H, W) float32 class probabilities that replace class_map in losses after MixUp, or None.
        sizes: (height, width) in px of each image, where images of several sizes were padded on the right and at the
            bottom to form the batch (label 0 and class IGNORE there); None where all fill it.
    """

    class_map: Tensor
    distance: Tensor
    label_image: Tensor
    cell_classes: tuple[Tensor, ...]
    soft_classes: Tensor | None = None
    sizes: tuple[tuple[int, int], ...] | None = None

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        return Targets(
            class_map=self.class_map.to(device),
            distance=self.distance.to(device),
            label_image=self.label_image.to(device),
            cell_classes=tuple(one.to(device) for one in self.cell_classes),
            soft_classes=None if self.soft_classes is None else self.soft_classes.to(device),
            sizes=self.sizes,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Images with their targets, padded to one size where they differ.

    Attributes:
        images: (B, C, H, W) float32, raw counts.
        targets: see Targets.
        names: one sample name per image.
    """

    images: Tensor
    targets: Targets
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))


@dataclass(frozen=True, kw_only=True)
class DataStats:
    """What a net must know of its training data before the first step.

    Attributes:
        offset, scale: one per channel, in counts; the net sees (image - offset) / scale.
        class_pixels: number of training pixels of each class, background first, IGNORE left out.
        normalization: where offset and scale come from, one of NORMALIZATIONS of ``data.statistics``.
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    class_pixels: tuple[int, ...]
    normalization: str = "percentile"
