"""Random numbers for augmentation, drawn from a given generator and never from torch's global one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cellvision.errors import ConfigError, explain


def draw_uniform(rng: torch.Generator, low: float, high: float) -> float:
    """A number in low..high."""
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


def draw_factor(rng: torch.Generator, low: float, high: float) -> float:
    """A factor in low..high, doubling as likely as halving: uniform in its logarithm."""
    return math.exp(draw_uniform(rng, math.log(low), math.log(high)))


def draw_factors(rng: torch.Generator, low: float, high: float, *, channels: int) -> Tensor:
    """(C, 1, 1) float32, one factor per channel; see ``draw_factor``."""
    return torch.tensor([draw_factor(rng, low, high) for _ in range(channels)], dtype=torch.float32)[:, None, None]


def draw_chance(rng: torch.Generator, probability: float) -> bool:
    """True with this probability; one number is drawn whatever the probability is."""
    return float(torch.rand((), generator=rng, dtype=torch.float64)) < probability


def draw_smooth(rng: torch.Generator, *, planes: int, size: tuple[int, int], knots: tuple[int, int]) -> Tensor:
    """(planes, H, W) float32 smooth random surfaces through ``knots`` normal numbers per plane."""
    coarse = torch.randn((1, planes, *knots), generator=rng)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0]


def check_numbers(step: object, name: str, *, low: float, high: float = math.inf) -> None:
    """Raise ConfigError unless the step's setting, a number or a (least, most) pair, lies in low..high, in order."""
    value = getattr(step, name)
    numbers = list(value) if isinstance(value, list | tuple) else [value, value]
    right = len(numbers) == 2 and all(isinstance(n, int | float) for n in numbers)
    if not right or not low <= numbers[0] <= numbers[1] <= high:
        usual = getattr(type(step), name, low)
        raise ConfigError(
            explain(
                got=f"{type(step).__name__} {name}={value}",
                need=f"{low}..{high}" + (", two numbers, least first" if isinstance(value, list | tuple) else ""),
                hint=f"{name}={list(usual) if isinstance(usual, tuple) else usual}",
            )
        )
