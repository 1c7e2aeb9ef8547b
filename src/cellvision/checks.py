"""Whether a setting is a number, a switch or a list as it should be; each error is one sentence with its key.

Settings come from files and command lines, where a number can be a text and a list a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cellvision.errors import ConfigError, explain, is_finite_number


def check_range(
    key: str,
    value: float,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
    example: float,
) -> None:
    """Raise ConfigError unless ``value`` is a finite number from ``low`` to ``high``, above ``above``, below ``below``.

    Example:
        >>> check_range("model.prior", 2, above=0, below=1, example=0.01)
        Traceback (most recent call last):
        cellvision.errors.ConfigError: model.prior=2; need a number above 0 and below 1; try: model.prior=0.01
    """
    if not is_finite_number(value) or not (low <= value <= high and above < value < below):
        lowest = f"from {low}" if math.isfinite(high) else f"from {low} up"
        words = ((above, f"above {above}"), (low, lowest), (high, f"to {high}"), (below, f"and below {below}"))
        limits = [word for limit, word in words if math.isfinite(limit)]
        raise refuse(key, value, need=" ".join(["a number", *limits]), example=example)


MANY = 10**6
"""Of epochs, batches or steps nobody asks for more."""


def check_count(
    key: str, value: int | None, *, low: int = 1, high: float = math.inf, or_none: bool = False, example: Any
) -> None:
    """Raise ConfigError unless ``value`` is a whole number from ``low`` to ``high``, or None where that is allowed."""
    fits = or_none if value is None else is_whole(value) and low <= value <= high
    if not fits:
        limit = "up" if math.isinf(high) else f"to {high}"
        raise refuse(key, value, need=f"a whole number from {low} {limit}", example=example)


def check_switch(key: str, value: bool) -> None:
    """Raise ConfigError unless ``value`` is true or false: any text would count as true."""
    if not isinstance(value, bool):
        raise refuse(key, value, need="true or false", example="false")


def check_text(key: str, value: str | None, *, or_none: bool = False, example: str) -> None:
    """Raise ConfigError unless ``value`` is a text of one sign or more, or None where that is allowed."""
    fits = or_none if value is None else isinstance(value, str) and value.strip()
    if not fits:
        raise refuse(key, value, need="a text" + (", or null" if or_none else ""), example=example)


def check_rising(key: str, values: Sequence[float]) -> None:
    """Raise ConfigError unless these are numbers that rise from above 0."""
    are_numbers = isinstance(values, list | tuple) and all(map(is_finite_number, values))
    if not are_numbers or not all(low < high for low, high in zip((0, *values), (*values, 1e8), strict=True)):
        raise refuse(key, values, need="rising numbers above 0", example="[64,128]")


def check_numbers(
    key: str, values: Sequence[float], *, low: float = -math.inf, above: float = -math.inf, what: str
) -> None:
    """Raise ConfigError unless these are one or more finite numbers from ``low`` up, or above ``above``.

    Args:
        key: of the setting.
        values: a list or a tuple, or else refused.
        low: limit of each.
        above: another, not included.
        what: the numbers are, such as "one per channel".
    """
    if not isinstance(values, list | tuple) or not values:
        raise refuse(key, values, need=f"numbers, {what}", example="[1.0,...]")
    for value in values:
        check_range(key, value, low=low, above=above, example=1.0)


def refuse(key: str, value: Any, *, need: str, example: Any) -> ConfigError:
    """The error for a setting's value."""
    shown = list(value) if isinstance(value, tuple) else value  # lists of a file become tuples
    return ConfigError(explain(got=f"{key}={shown!r}", need=need, hint=f"{key}={example}"))


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)
