"""What a value of a manifest must be, and the sentence that says so."""

from __future__ import annotations

from cellvision.errors import BundleError, explain

LARGEST_SIZE = 500_000_000
"""Of tiles, margins, batches, memory and the sizes of a manifest; the C++ runner adds some of them up in 32 bits."""

PIXEL_SIZES = "a number of micrometres from 0.0001 to 1000000"
"""Edges that a pixel can have, in words: a TIFF holds the resolutions that they give."""


def check(is_right: bool, key: str, value: object, need: str, example: object) -> None:
    """Raise BundleError, which names key and value, what it must be and an example, unless ``is_right``."""
    if not is_right:
        shown = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}.."
        raise BundleError(explain(got=f"{key}={shown}", need=need, hint=f"{key}={example}"))


def check_whole(key: str, value: object, *, least: int, usual: int) -> None:
    """Raise BundleError, as `check` does, unless a value is a whole number from ``least`` to LARGEST_SIZE."""
    check(is_whole(value, least=least), key, value, f"a whole number from {least} to {LARGEST_SIZE}", usual)


def is_whole(value: object, *, least: int) -> bool:
    """Whether a value is a whole number from ``least`` to LARGEST_SIZE; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST_SIZE


def is_pixel_size(value: object) -> bool:
    """Whether a value is one of PIXEL_SIZES."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-4 <= value <= 1e6


def is_between(value: object, low: float, high: float) -> bool:
    """Whether a value is a number between the two, neither of them included."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def is_name(value: object) -> bool:
    """Whether a value is a text that is not empty."""
    return isinstance(value, str) and value != ""


def are_names(values: object, *, least: int) -> bool:
    """Whether a value is a tuple of at least so many names, all different."""
    return isinstance(values, tuple) and all(map(is_name, values)) and len(values) == len(set(values)) >= least
