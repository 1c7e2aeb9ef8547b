"""What augmentation works on: an image in raw counts and its label image, changed together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision import tv_tensors

from cellvision.errors import ShapeError, explain


class Boxes(NamedTuple):
    """Boxes of the cells in a label image.

    Attributes:
        ids: (N,) int64, labels in ascending order.
        corners: (N, 4) float32, left, top, right, bottom on pixel edges: a cell of one pixel is 1 px wide.
    """

    ids: Tensor
    corners: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """One field, or a crop of it, on its way into a training batch. Steps return a new one and never write into it.

    Attributes:
        image: (C, H, W) float32, raw counts.
        label_image: (H, W) int32, 0 = background, ids below 2**24.
        ignored: labels of which a crop has left so little that nothing is to be learnt from it. They stay in the label
            image, so that every step moves them along, and get class IGNORE in the batch.

    Raises:
        ShapeError: dtypes or sizes differ from these.
    """

    image: Tensor
    label_image: Tensor
    ignored: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        image, labels = self.image, self.label_image
        wrong = image.ndim != 3 or image.shape[1:] != labels.shape or image.numel() == 0
        if wrong or image.dtype != torch.float32 or labels.dtype != torch.int32:
            raise ShapeError(
                explain(
                    got=f"image {tuple(image.shape)} {image.dtype} with labels {tuple(labels.shape)} {labels.dtype}",
                    need="image (C, H, W) float32 and labels (H, W) int32 of at least one pixel",
                    hint="convert both before augmentation",
                )
            )
        object.__setattr__(self, "image", tv_tensors.Image(image))
        object.__setattr__(self, "label_image", tv_tensors.Mask(labels))

    @property
    def height(self) -> int:
        """Rows."""
        return self.image.shape[1]

    @property
    def width(self) -> int:
        """Columns."""
        return self.image.shape[2]

    @property
    def boxes(self) -> Boxes:
        """Exact boxes of the cells that are still there; see ``compute_boxes``."""
        return compute_boxes(self.label_image)


class Step(Protocol):
    """One kind of augmentation; all chance comes from ``rng``, so that equal generators give equal bytes."""

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The changed field."""


def compute_boxes(label_image: Tensor) -> Boxes:
    """The tightest box of every label.

    Boxes are found anew after every geometric change. Moving the four corners instead, as box transforms do, gives
    boxes that are too large after a rotation and says nothing of cells that a crop has cut off or removed.

    Args:
        label_image: (H, W) integer, 0 = background.

    Example:
        >>> compute_boxes(torch.tensor([[0, 7, 7], [0, 7, 0]])).corners
        tensor([[1., 0., 3., 2.]])
    """
    labels = label_image.as_subclass(Tensor)
    places = labels.nonzero()
    ids, which = labels[places[:, 0], places[:, 1]].long().unique(return_inverse=True)
    index = which[:, None].expand(-1, 2)
    first = places.new_zeros((len(ids), 2)).scatter_reduce(0, index, places, "amin", include_self=False)
    last = places.new_zeros((len(ids), 2)).scatter_reduce(0, index, places, "amax", include_self=False)
    return Boxes(ids, torch.cat([first.flip(1), last.flip(1) + 1], dim=1).float())


def compute_background(field: Field) -> Tensor:
    """(C, 1, 1) counts of an empty place: the median of unlabelled pixels, or the lowest count where all are labelled.

    Measured on at most some 16,000 pixels of a regular grid.
    """
    stride = max(1, int((field.height * field.width / 2**14) ** 0.5))
    image = field.image.as_subclass(Tensor)[:, ::stride, ::stride]
    empty = field.label_image.as_subclass(Tensor)[::stride, ::stride] == 0
    level = image[:, empty].median(dim=1).values if bool(empty.any()) else image.amin(dim=(1, 2))
    return level[:, None, None]
