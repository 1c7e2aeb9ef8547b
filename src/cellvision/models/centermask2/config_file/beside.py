"""What settings beside a config file change of it, and what of the file is left out, in words for the run's report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cellvision.models.centermask2.config_file.reader import ConfigFile

_WHERE: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda key: key == "MODEL.WEIGHTS", "model.weights=FILE loads weights"),
    (lambda key: key.startswith("SOLVER."), "steps and rates are set in optim and trainer, batches in data"),
    (lambda key: key.endswith("_TEST"), "fields are scored at their own size"),
    (lambda key: key.startswith("INPUT."), "training images are changed by data.augment"),
)
"""Which keys of a file are set where, first fit first."""


def list_untaken(file: ConfigFile, *, class_count: int, has_weights: bool) -> list[str]:
    """Lines on the keys in a file that say nothing here.

    Args:
        file: that was read.
        class_count: cell classes of the data.
        has_weights: a file of weights is loaded, in place of the one that the config names.
    """
    parts: dict[str, list[str]] = {}
    for key, value in file.untaken.items():
        if not (key == "MODEL.WEIGHTS" and (has_weights or not value)):
            reason = next(where for fits, where in _WHERE if fits(key))
            parts.setdefault(reason, []).append(f"{key}={_show(value)}")
    if file.net.num_classes != class_count:
        parts[f"the data has {class_count}"] = [f"MODEL.FCOS.NUM_CLASSES={file.net.num_classes}"]
    for key, reason in file.ignored.items():
        parts.setdefault(reason, []).append(key)
    return [f"not taken from the file: {', '.join(each)} ({reason})" for reason, each in parts.items()]


def list_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lines on the settings, as nested plain values, that are not those of the file.

    Example:
        >>> list_changes({"backbone": "vovnet39", "levels": [3, 4]}, {"backbone": "resnet50", "levels": [3, 4]})
        ["backbone resnet50 instead of the file's vovnet39"]
    """
    old = dict(_flatten(before))
    changed = {key: value for key, value in _flatten(after) if value != old.get(key)}
    return [f"{key} {_show(value)} instead of the file's {_show(old.get(key))}" for key, value in changed.items()]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_show, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
