"""What a value of a manifest must be, and the sentence that says so."""

from __future__ import annotations

from cellvision.errors import BundleError, explain


def check(is_right: bool, key: str, value: object, need: str, example: object) -> None:
    """Raise BundleError, which names key and value, what it must be and an example, unless ``is_right``."""
    if not is_right:
        shown = repr(value) if len(repr(value)) <= 100 else f"{repr(value)[:100]}.."
        raise BundleError(explain(got=f"{key}={shown}", need=need, hint=f"{key}={example}"))


def is_whole(value: object, *, least: int) -> bool:
    """Whether a value is a whole number from ``least`` up; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_between(value: object, low: float, high: float) -> bool:
    """Whether a value is a number between the two, neither of them included."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high


def is_name(value: object) -> bool:
    """Whether a value is a text that is not empty."""
    return isinstance(value, str) and value != ""


def are_names(values: object, *, least: int) -> bool:
    """Whether a value is a tuple of at least so many names, all different."""
    return isinstance(values, tuple) and all(map(is_name, values)) and len(values) == len(set(values)) >= least
