"""Augmentation steps that change counts and leave labels alone.

They work on raw counts of any range: amounts are relative to each channel's own lowest..highest count, except where
a unit is named. None of them makes a count negative that was not, and none makes NaN, also on constant images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cellvision.data.augment.draws import (
    check_numbers,
    draw_chance,
    draw_factor,
    draw_factors,
    draw_smooth,
    draw_uniform,
)
from cellvision.data.augment.field import Field

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class RandomIntensity:
    """Another exposure: one gain, offset and contrast for all channels alike.

    Attributes:
        gain: least and most factor on what lies above a channel's lowest count.
        offset: least and most shift, as a share of a channel's range.
        contrast: least and most factor on the distance from a channel's mean.
        probability: of changing at all.
    """

    gain: Range = (0.7, 1.4)
    offset: Range = (-0.05, 0.05)
    contrast: Range = (0.8, 1.25)
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self, "gain", low=1e-3)
        check_numbers(self, "offset", low=-10)
        check_numbers(self, "contrast", low=1e-3)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The field at another exposure."""
        if not draw_chance(rng, self.probability):
            return field
        gain, contrast = draw_factor(rng, *self.gain), draw_factor(rng, *self.contrast)
        lowest, span = _measure_range(field)
        counts = lowest + gain * (_counts(field) - lowest) + draw_uniform(rng, *self.offset) * span
        mean = counts.mean(dim=(1, 2), keepdim=True)
        return _with_counts(field, mean + contrast * (counts - mean))


@dataclass(frozen=True, kw_only=True)
class RandomGamma:
    """Counts bent by a power law between each channel's lowest and highest, which stay.

    Attributes:
        gamma: least and most exponent; below 1 lifts dim cells. Every channel has its own.
        probability: of changing at all.
    """

    gamma: Range = (0.7, 1.4)
    probability: float = 0.3

    def __post_init__(self) -> None:
        check_numbers(self, "gamma", low=0.05, high=20)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The bent field."""
        if not draw_chance(rng, self.probability):
            return field
        exponents = draw_factors(rng, *self.gamma, channels=len(field.image))
        lowest, span = _measure_range(field)
        share = (_counts(field) - lowest) / torch.where(span > 0, span, 1.0)
        return _with_counts(field, lowest + span * share.clamp_(0, 1) ** exponents)


@dataclass(frozen=True, kw_only=True)
class ChannelJitter:
    """Another staining: every channel gets its own gain, and some may be lost.

    Attributes:
        gain: least and most factor on what lies above a channel's lowest count.
        drop: probability of losing a channel, which is then flat at its lowest count; one channel is always kept.
        probability: of changing at all.
    """

    gain: Range = (0.8, 1.25)
    drop: float = 0.0
    probability: float = 0.5

    def __post_init__(self) -> None:
        check_numbers(self, "gain", low=1e-3)
        check_numbers(self, "drop", low=0, high=1)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The field in another staining."""
        if not draw_chance(rng, self.probability):
            return field
        channels = len(field.image)
        gains = draw_factors(rng, *self.gain, channels=channels)
        lost = torch.tensor([draw_chance(rng, self.drop) for _ in range(channels)])
        lost[torch.randint(channels, (), generator=rng)] = False
        lowest, _ = _measure_range(field)
        gains = torch.where(lost[:, None, None], 0.0, gains)
        return _with_counts(field, lowest + gains * (_counts(field) - lowest))


@dataclass(frozen=True, kw_only=True)
class IlluminationField:
    """Uneven light: what lies above each channel's lowest count is brighter here and dimmer there.

    Attributes:
        strength: typical deviation from even light (standard deviation of its logarithm at the knots).
        knots: number of places along each edge between which the light changes smoothly.
        probability: of changing at all.
    """

    strength: float = 0.25
    knots: int = 3
    probability: float = 0.3

    def __post_init__(self) -> None:
        check_numbers(self, "strength", low=0, high=5)
        check_numbers(self, "knots", low=2, high=64)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The field in uneven light, the same in all channels."""
        if not draw_chance(rng, self.probability):
            return field
        size = (field.height, field.width)
        light = torch.exp(self.strength * draw_smooth(rng, planes=1, size=size, knots=(self.knots, self.knots)))
        lowest, _ = _measure_range(field)
        return _with_counts(field, lowest + light * (_counts(field) - lowest))


@dataclass(frozen=True, kw_only=True)
class RandomBlur:
    """Out of focus: a Gaussian blur of all channels.

    Attributes:
        sigma_px: least and most width of the blur.
        probability: of blurring at all.
    """

    sigma_px: Range = (0.3, 1.5)
    probability: float = 0.3

    def __post_init__(self) -> None:
        check_numbers(self, "sigma_px", low=0.05, high=100)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The blurred field."""
        if not draw_chance(rng, self.probability):
            return field
        sigma = draw_uniform(rng, *self.sigma_px)
        reach = math.ceil(3 * sigma)
        # Mirroring at the border needs a reach below the length, hence the narrower kernel on tiny fields.
        kernel = [2 * min(reach, length - 1) + 1 for length in (field.width, field.height)]
        return _with_counts(field, tv.gaussian_blur(_counts(field), kernel_size=kernel, sigma=[sigma, sigma]))


@dataclass(frozen=True, kw_only=True)
class PoissonNoise:
    """Fewer photons: shot noise on top of what the image has, stronger where it is bright.

    Photons arrive independently, so their number at a place is Poisson distributed: its variance equals its mean, and
    N photons are told to within sqrt(N). Neither the camera's gain nor its offset is known here: a channel's lowest
    count stands for no photons and its highest for the drawn number, so the noise at a place that is a share s of the
    range above the lowest has a standard deviation of sqrt(s / photons) of the range: 1.4 to 7 % at the brightest
    place by default. A constant channel has no range and stays.

    Attributes:
        photons: least and most photons at each channel's brightest place, 1 to 1e6; fewer means more noise.
        probability: of adding any.
    """

    photons: Range = (200, 5000)
    probability: float = 0.3

    def __post_init__(self) -> None:
        check_numbers(self, "photons", low=1, high=1e6)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The field with shot noise; the expected counts stay."""
        if not draw_chance(rng, self.probability):
            return field
        photons = draw_factor(rng, *self.photons)
        lowest, span = _measure_range(field)
        share = (_counts(field) - lowest) / torch.where(span > 0, span, 1.0)
        seen = torch.poisson(photons * share.clamp_(0, 1), generator=rng) / photons
        return _with_counts(field, lowest + span * seen)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Noise of the electronics: the same everywhere.

    Attributes:
        sigma: least and most standard deviation, as a share of a channel's range.
        probability: of adding any.
    """

    sigma: Range = (0.0, 0.03)
    probability: float = 0.3

    def __post_init__(self) -> None:
        check_numbers(self, "sigma", low=0)
        check_numbers(self, "probability", low=0, high=1)

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The noisier field."""
        if not draw_chance(rng, self.probability):
            return field
        _, span = _measure_range(field)
        counts = _counts(field)
        noise = torch.randn(counts.shape, generator=rng)
        return _with_counts(field, counts + draw_uniform(rng, *self.sigma) * span * noise)


def _counts(field: Field) -> Tensor:
    # Arithmetic on the plain tensor: the image type costs a dispatch at every operation.
    return field.image.as_subclass(Tensor)


def _measure_range(field: Field) -> tuple[Tensor, Tensor]:
    """Lowest count and span up to the highest, each (C, 1, 1)."""
    lowest, highest = torch.aminmax(_counts(field).flatten(1), dim=1)
    return lowest[:, None, None], (highest - lowest)[:, None, None]


def _with_counts(field: Field, counts: Tensor) -> Field:
    """The field with other counts, none negative where it was not, none beyond the old one where it was."""
    return replace(field, image=torch.maximum(counts, _counts(field).clamp(max=0)))
