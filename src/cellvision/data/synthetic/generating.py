"""What generated data sets share: settings within their ranges, and chance that follows from seed and index alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellvision.errors import ConfigError, explain


def check_ranges(dataset: object, ranges: Sequence[tuple[str, float, float]]) -> None:
    """Check each named setting of a data set against its lowest and highest value.

    A setting is whole, or a (least, most) pair, where its default is.

    Raises:
        ConfigError: a number, or one of a pair, is not in its range, or a pair not in order.
    """
    for name, low, high in ranges:
        value, default = getattr(dataset, name), getattr(type(dataset), name)
        numbers = list(value) if isinstance(default, tuple) and isinstance(value, list | tuple) else [value]
        whole = isinstance(np.min(default), np.integer)
        right = len(numbers) == np.size(default) and all(isinstance(n, int if whole else int | float) for n in numbers)
        if not right or not low <= numbers[0] <= numbers[-1] <= high:
            kind = "whole numbers" if whole else "numbers"
            need = f"{kind} in {low}..{high}" + (", the least and the most" if np.size(default) == 2 else "")
            raise ConfigError(
                explain(got=f"synthetic data setting {name}={value}", need=need, hint=f"{name}={default}")
            )


def build_generator(*key: int) -> np.random.Generator:
    """The random numbers that belong to a key, e.g. (seed, index); equal keys give equal numbers on any machine."""
    # PCG64 and SeedSequence are named because numpy promises their streams; default_rng may change.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
