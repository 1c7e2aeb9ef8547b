"""Augmentation steps that move pixels: the image between pixels, the labels to the nearest one, boxes anew.

No step invents a label. Where a step shows a place outside the field, the image is filled with the counts of an empty
place and the labels with background; mirrored cells there would be cells that the labels deny.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cellvision.data.draws import check_numbers, draw_chance, draw_factor, draw_smooth, draw_uniform
from cellvision.data.field import Field, compute_background
from cellvision.errors import ConfigError, explain

Size = int | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RandomFlip:
    """Mirrored and turned by quarter turns: all eight ways a square field can lie.

    Attributes:
        horizontal, vertical: probability of mirroring left-right, and up-down.
        turn: probability of a quarter turn; fields that are not square keep their size and are never turned by it.
    """

    horizontal: float = 0.5
    vertical: float = 0.5
    turn: float = 0.5

    def __post_init__(self) -> None:
        for name in ("horizontal", "vertical", "turn"):
            check_numbers(self, name, low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The field as it might lie on the stage."""
        image, labels = field.image, field.label_image
        if draw_chance(rng, self.horizontal):
            image, labels = tv.horizontal_flip(image), tv.horizontal_flip(labels)
        if draw_chance(rng, self.vertical):
            image, labels = tv.vertical_flip(image), tv.vertical_flip(labels)
        if draw_chance(rng, self.turn) and field.height == field.width:
            image, labels = image.rot90(1, (1, 2)), labels.rot90(1, (0, 1))
        return Field(image=image, label_image=labels)


@dataclass(frozen=True, kw_only=True)
class RandomRotate:
    """Turned about the centre by any angle; the size stays.

    Attributes:
        degrees: largest angle either way, 0..180.
        probability: of turning at all.
    """

    degrees: float = 45.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self, "degrees", low=0, high=180)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The turned field."""
        if not draw_chance(rng, self.probability):
            return field
        angle = draw_uniform(rng, -self.degrees, self.degrees)
        return _resample(field, lambda planes, mode: tv.rotate(planes, angle, interpolation=mode))


@dataclass(frozen=True, kw_only=True)
class RandomElastic:
    """Bent like a soft gel: smooth random displacements.

    Attributes:
        alpha_px: typical displacement (standard deviation).
        sigma_px: distance over which displacements differ, at least 2; below about
            twice alpha_px cells are folded over.
        probability: of bending at all.
    """

    alpha_px: float = 2.0
    sigma_px: float = 32.0
    probability: float = 0.3

    def __post_init__(self) -> None:
        check_numbers(self, "alpha_px", low=0)
        check_numbers(self, "sigma_px", low=2)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The bent field."""
        if not draw_chance(rng, self.probability):
            return field
        size = (field.height, field.width)
        # A few knots stretched smoothly cost a tenth of blurring noise with a kernel of several hundred pixels.
        knots = (math.ceil(size[0] / self.sigma_px) + 1, math.ceil(size[1] / self.sigma_px) + 1)
        moves = self.alpha_px * draw_smooth(rng, planes=2, size=size, knots=knots)
        # The sampling grid runs from -1 to 1 over the whole width.
        shifts = torch.stack([moves[1] * 2 / size[1], moves[0] * 2 / size[0]], dim=-1)[None]
        return _resample(field, lambda planes, mode: tv.elastic(planes, shifts, interpolation=mode))


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A part of the field at random, always of one size.

    Attributes:
        size: edge, or (height, width), in px. A smaller field is laid at random into an empty one of this size.
    """

    size: Size

    def __post_init__(self) -> None:
        _check_size(self)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The part."""
        return _cut(field, _draw_window(field, rng, *_to_pair(self.size)))


@dataclass(frozen=True, kw_only=True)
class RandomScaleCrop:
    """A part of the field at random, enlarged or reduced to one size: cells of several magnifications.

    Attributes:
        size: edge, or (height, width), in px, of the result.
        scale: smallest and largest magnification; 2 shows cells twice as large.
        probability: of magnifying; otherwise a plain crop.
    """

    size: Size
    scale: tuple[float, float] = (0.75, 1.33)
    probability: float = 1.0

    def __post_init__(self) -> None:
        _check_size(self)
        check_numbers(self, "scale", low=0.05, high=20)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The magnified part."""
        size = _to_pair(self.size)
        scale = draw_factor(rng, *self.scale) if draw_chance(rng, self.probability) else 1.0
        window = (max(1, round(size[0] / scale)), max(1, round(size[1] / scale)))
        part = _cut(field, _draw_window(field, rng, *window))
        if window == size:
            return part
        # Plain "nearest" would shift labels by up to half a source pixel against the image.
        labels = part.label_image.as_subclass(Tensor)[None]
        return Field(
            image=tv.resize(part.image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True),
            label_image=tv.resize(labels, list(size), interpolation=InterpolationMode.NEAREST_EXACT)[0],
        )


def _resample(field: Field, move: Callable[[Tensor, InterpolationMode], Tensor]) -> Field:
    """The field after ``move`` was applied to image and labels, places outside filled with empty background."""
    level = compute_background(field)
    image = field.image.as_subclass(Tensor)
    # Torchvision fills with 0 here; its own fill costs another plane and blends along the border.
    moved = move(image - level, InterpolationMode.BILINEAR) + level
    labels = move(field.label_image.as_subclass(Tensor)[None], InterpolationMode.NEAREST)[0]
    return replace(field, image=moved.clamp_(min=image.amin()), label_image=labels)


def _cut(field: Field, window: tuple[int, int, int, int]) -> Field:
    """The window (top, left, height, width) of the field; it may reach beyond the field."""
    top, left, height, width = window
    before = (max(-top, 0), max(-left, 0))
    after = (max(top + height - field.height, 0), max(left + width - field.width, 0))
    if any(before + after):
        padding = [before[1], before[0], after[1], after[0]]
        field = Field(
            image=tv.pad(field.image, padding, fill=compute_background(field).flatten().tolist()),
            label_image=tv.pad(field.label_image, padding, fill=0),
        )
        top, left = top + before[0], left + before[1]
    place = (top, left, height, width)
    return Field(image=tv.crop(field.image, *place), label_image=tv.crop(field.label_image, *place))


def _draw_window(field: Field, rng: torch.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    starts = []
    for spare in (field.height - height, field.width - width):
        drawn = int(torch.randint(abs(spare) + 1, (), generator=rng))
        starts.append(drawn if spare >= 0 else -drawn)
    return starts[0], starts[1], height, width


def _to_pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _check_size(step: RandomCrop | RandomScaleCrop) -> None:
    if min(_to_pair(step.size)) < 1:
        raise ConfigError(
            explain(
                got=f"{type(step).__name__} size={step.size}",
                need="a height and a width of at least 1 px",
                hint="size=256",
            )
        )
