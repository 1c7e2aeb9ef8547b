"""Augmentation steps that show a part of a field, and what becomes of the cells they cut.

A cell that a crop cuts stays a cell by default, however little is left of it. ``min_visible`` and ``min_area_px`` mark
the slivers: they keep their labels but are learnt neither as cell nor as background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cellvision.checks import is_whole
from cellvision.data.augment.draws import check_numbers, draw_chance, draw_factor
from cellvision.data.augment.field import Field, compute_background
from cellvision.data.augment.geometry import resize
from cellvision.errors import ConfigError, explain

Size = int | tuple[int, int]
Window = tuple[int, int, int, int]
"""(top, left, height, width) in px; it may reach beyond the field."""

LEAST_SHRINKING = 0.95
LARGEST_PX = 16384
"""Of a part's edges; the fields themselves may be larger."""


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A part of the field at random, always of one size.

    Attributes:
        size: edge, or (height, width), in px. A smaller field is laid at random into an empty one of this size.
        min_visible: cells of which a smaller share is left by the cut are ignored, 0..1.
        min_area_px: cells of which fewer px are left by the cut are ignored; cells left whole never are.
    """

    size: Size
    min_visible: float = 0.0
    min_area_px: int = 0

    def __post_init__(self) -> None:
        _check_crop(self)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The part."""
        part = cut(field, draw_window(field, rng, *_to_pair(self.size)))
        return ignore_slivers(part, field, min_visible=self.min_visible, min_area_px=self.min_area_px)


@dataclass(frozen=True, kw_only=True)
class RandomScaleCrop:
    """A part of the field at random, enlarged or reduced to one size: cells of several magnifications.

    Attributes:
        size: edge, or (height, width), in px, of the result.
        scale: smallest and largest magnification; 2 shows cells twice as large.
        probability: of magnifying; otherwise a plain crop.
        min_visible: see RandomCrop.
        min_area_px: see RandomCrop; px of the field, before it is magnified.
    """

    size: Size
    scale: tuple[float, float] = (0.75, 1.33)
    probability: float = 1.0
    min_visible: float = 0.0
    min_area_px: int = 0

    def __post_init__(self) -> None:
        _check_crop(self)
        check_numbers(self, "scale", low=0.05, high=20)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The magnified part."""
        size = _to_pair(self.size)
        scale = draw_factor(rng, *self.scale) if draw_chance(rng, self.probability) else 1.0
        window = draw_window(field, rng, max(1, round(size[0] / scale)), max(1, round(size[1] / scale)))
        part = cut(field, window)
        part = ignore_slivers(part, field, min_visible=self.min_visible, min_area_px=self.min_area_px)
        return resize(part, size)


@dataclass(frozen=True, kw_only=True)
class CropByCells:
    """A part of the field at random that holds a limited number of cells, so that thousands in a field fit a step.

    A window of ``size``, or of the whole field where that is smaller, is laid at random. While it holds more than
    ``max_cells`` cells (those it cuts included), a smaller window of the same shape is laid at random into it: its
    area shrinks by the factor max_cells / cells, and its edges by 5 % at least. Parts of different sizes form one
    batch, padded. Limiting the cells instead (dropping some of them) would teach that the others are background.

    Attributes:
        size: edge, or (height, width), in px, of the largest part.
        max_cells: greatest number of cells in it, at least 1.
        min_visible, min_area_px: see RandomCrop.
    """

    size: Size
    max_cells: int
    min_visible: float = 0.0
    min_area_px: int = 0

    def __post_init__(self) -> None:
        _check_crop(self)
        check_numbers(self, "max_cells", low=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The part."""
        whole = _to_pair(self.size)
        part = cut(field, draw_window(field, rng, min(whole[0], field.height), min(whole[1], field.width)))
        while (cells := _count_cells(part.label_image)) > self.max_cells:
            factor = min(LEAST_SHRINKING, math.sqrt(self.max_cells / cells))
            edges = [max(1, min(edge - 1, round(edge * factor))) for edge in (part.height, part.width)]
            part = cut(part, draw_window(part, rng, edges[0], edges[1]))
        return ignore_slivers(part, field, min_visible=self.min_visible, min_area_px=self.min_area_px)


CROPS = (RandomCrop, RandomScaleCrop, CropByCells)
"""Steps that show a part of a field only."""


def cut(field: Field, window: Window) -> Field:
    """The window of the field; what of it lies beyond the field is an empty place."""
    top, left, height, width = window
    before = (max(-top, 0), max(-left, 0))
    after = (max(top + height - field.height, 0), max(left + width - field.width, 0))
    if any(before + after):
        padding = [before[1], before[0], after[1], after[0]]
        field = replace(
            field,
            image=tv.pad(field.image, padding, fill=compute_background(field).flatten().tolist()),
            label_image=tv.pad(field.label_image, padding, fill=0),
        )
        top, left = top + before[0], left + before[1]
    place = (top, left, height, width)
    return replace(field, image=tv.crop(field.image, *place), label_image=tv.crop(field.label_image, *place))


def draw_window(field: Field, rng: torch.Generator, height: int, width: int) -> Window:
    """A window at random: inside the field, or around it along an edge that is shorter."""
    starts = []
    for spare in (field.height - height, field.width - width):
        drawn = int(torch.randint(abs(spare) + 1, (), generator=rng))
        starts.append(drawn if spare >= 0 else -drawn)
    return starts[0], starts[1], height, width


def ignore_slivers(part: Field, whole: Field, *, min_visible: float, min_area_px: int) -> Field:
    """``part`` with those of its cells ignored that were cut out of ``whole`` and have too little left.

    Taking their labels away instead would teach that there is background where the image shows a cell.
    """
    if min_visible <= 0 and min_area_px <= 0:
        return part
    ids, left = part.label_image.as_subclass(Tensor).unique(return_counts=True)
    before = _count_pixels(whole.label_image.as_subclass(Tensor), ids)
    sliver = (left < before) & ((left < min_visible * before.double()) | (left < min_area_px)) & (ids > 0)
    return replace(part, ignored=part.ignored | frozenset(ids[sliver].tolist()))


def _count_pixels(labels: Tensor, ids: Tensor) -> Tensor:
    """Pixels of each of the ``ids``, which are ascending; labels may be as high as 2**24."""
    places = torch.searchsorted(ids, labels.flatten()).clamp_(max=len(ids) - 1)
    found = ids[places] == labels.flatten()
    return torch.bincount(places[found], minlength=len(ids))


def _count_cells(labels: Tensor) -> int:
    present = labels.as_subclass(Tensor).unique()
    return int((present > 0).sum())


def _to_pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _check_crop(step: RandomCrop | RandomScaleCrop | CropByCells) -> None:
    edges = step.size if isinstance(step.size, Sequence) else (step.size, step.size)
    if len(edges) != 2 or not all(is_whole(edge) and 1 <= edge <= LARGEST_PX for edge in edges):
        raise ConfigError(
            explain(
                got=f"{type(step).__name__} size={step.size}",
                need=f"an edge from 1 to {LARGEST_PX} px, or a height and a width",
                hint="size=256",
            )
        )
    check_numbers(step, "min_visible", low=0, high=1)
    check_numbers(step, "min_area_px", low=0)
