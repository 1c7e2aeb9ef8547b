"""Augmentation steps that move pixels: the image between pixels, the labels to the nearest one, boxes anew.

No step invents a label. Where a step shows a place outside the field, the image is filled with the counts of an empty
place and the labels with background; mirrored cells there would be cells that the labels deny.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cellvision.data.augment.draws import check_numbers, draw_chance, draw_smooth, draw_uniform
from cellvision.data.augment.field import Field, compute_background
from cellvision.errors import ConfigError, explain


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
        return replace(field, image=image, label_image=labels)


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
class ResizeShortestEdge:
    """The whole field at another size, its shape kept: the shorter edge is drawn from a list, the longer is limited.

    Attributes:
        sizes: lengths in px of the shorter edge, each as likely as the others; give a length twice to draw it more.
        max_size: greatest length in px of the longer edge; where it would be longer, the field is smaller than drawn.
    """

    sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_size: int = 1333

    def __post_init__(self) -> None:
        numbers = (*self.sizes, self.max_size) if isinstance(self.sizes, Sequence) else ()
        if len(numbers) < 2 or not all(type(n) is int and n > 0 for n in numbers):
            got = f"ResizeShortestEdge sizes={self.sizes}, max_size={self.max_size}"
            hint = "sizes=[640,672,704], max_size=1333"
            raise ConfigError(explain(got=got, need="lengths of at least 1 px, one size or more", hint=hint))

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The resized field."""
        drawn = self.sizes[int(torch.randint(len(self.sizes), (), generator=rng))]
        return resize(field, compute_resized(field.height, field.width, shortest=drawn, longest=self.max_size))


def compute_resized(height: int, width: int, *, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width in px that a field is resized to; halves are rounded up, and no edge becomes 0.

    Example:
        >>> compute_resized(520, 704, shortest=800, longest=1333)
        (800, 1083)
    """
    scale = shortest / min(height, width)
    # Python's round would take halves to the even number: other sizes than published recipes have.
    exact = [shortest if edge == min(height, width) else scale * edge for edge in (height, width)]
    if max(exact) > longest:
        exact = [edge * (longest / max(exact)) for edge in exact]
    return max(1, int(exact[0] + 0.5)), max(1, int(exact[1] + 0.5))


def resize(field: Field, size: tuple[int, int]) -> Field:
    """The field at another (height, width) in px: the image smoothed where it shrinks, labels to the nearest pixel."""
    if size == (field.height, field.width):
        return field
    # Plain "nearest" would shift labels by up to half a source pixel against the image.
    labels = field.label_image.as_subclass(Tensor)[None]
    return replace(
        field,
        image=tv.resize(field.image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True),
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
