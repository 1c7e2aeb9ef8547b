"""The chain of augmentation steps, and the one that is applied by default."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cellvision.data.augment.cropping import RandomScaleCrop
from cellvision.data.augment.field import Field, Step
from cellvision.data.augment.geometry import RandomElastic, RandomFlip, RandomRotate
from cellvision.data.augment.intensity import (
    ChannelJitter,
    GaussianNoise,
    IlluminationField,
    PoissonNoise,
    RandomBlur,
    RandomGamma,
    RandomIntensity,
)
from cellvision.errors import ConfigError, explain


class Augment:
    """Steps applied in order; equal fields and equal generators give equal bytes.

    Args:
        steps: name -> step; None switches a step off, so that a single one can be left out from the command line.

    Raises:
        ConfigError: an entry is neither a step nor None.

    Example:
        >>> from cellvision.data.augment import RandomCrop, RandomFlip
        >>> augment = Augment({"crop": RandomCrop(size=32), "flip": RandomFlip(), "blur": None})
        >>> field = Field(image=torch.rand(3, 40, 50), label_image=torch.ones(40, 50, dtype=torch.int32))
        >>> augment(field, torch.Generator().manual_seed(0)).image.shape
        torch.Size([3, 32, 32])
    """

    def __init__(self, steps: Mapping[str, Step | None]) -> None:
        """Keep the steps that are on."""
        for name, step in steps.items():
            if step is not None and not callable(step):
                raise ConfigError(
                    explain(got=f"augment.{name}={step!r}", need="a step or null", hint=f"augment.{name}=null")
                )
        self.steps: dict[str, Step] = {name: step for name, step in steps.items() if step is not None}

    def __call__(self, field: Field, rng: torch.Generator) -> Field:
        """The augmented field; the given one is left as it was."""
        for step in self.steps.values():
            field = step(field, rng)
        return field


def build_default_steps(*, size: int = 256) -> dict[str, Step]:
    """The default training chain for crops of ``size`` px: geometry, then light, stain and lens, then the camera."""
    return {
        "crop": RandomScaleCrop(size=size),
        "flip": RandomFlip(),
        "rotate": RandomRotate(),
        "elastic": RandomElastic(),
        "illumination": IlluminationField(),
        "channels": ChannelJitter(),
        "blur": RandomBlur(),
        "poisson": PoissonNoise(),
        "noise": GaussianNoise(),
        "intensity": RandomIntensity(),
        "gamma": RandomGamma(),
    }
