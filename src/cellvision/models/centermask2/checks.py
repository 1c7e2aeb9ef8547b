"""Settings that nets which find cells share; each error is one sentence with its key."""

from __future__ import annotations

from collections.abc import Sequence

from cellvision.checks import check_count, is_whole, refuse
from cellvision.errors import check_choice


def check_levels(key: str, values: Sequence[int]) -> None:
    """Raise ConfigError unless these are one or more whole numbers, each one above the one before."""
    if not isinstance(values, list | tuple) or not values or not all(map(is_whole, values)):
        raise refuse(key, values, need="pyramid levels, whole numbers", example="[3,4,5]")
    if list(values) != list(range(values[0], values[0] + len(values))):
        raise refuse(key, values, need="neighbouring pyramid levels, finest first", example="[3,4,5]")


def check_images_and_classes(kind: str, in_channels: int, classes: Sequence[str]) -> None:
    """Raise ConfigError for what no net that finds cells is built for.

    Args:
        kind: "instance", or else refused.
        in_channels: image channels, >= 1.
        classes: two or more different names, background first.
    """
    check_choice("model.kind", kind, ("instance",))
    check_count("model.in_channels", in_channels, example=1)
    are_names = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    if not are_names or not len(set(classes)) == len(classes) >= 2:
        need = "two or more different names, background first"
        raise refuse("model.classes", classes, need=need, example="[background,cell]")
