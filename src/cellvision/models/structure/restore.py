"""A fresh net given the structure that compression left, from the record of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from cellvision.errors import DataError, explain, unknown_name
from cellvision.models.structure.fake_quant import QuantPlan, set_fake_quant
from cellvision.models.structure.widths import set_widths


def _set_plan(net: nn.Module, record: Mapping[str, Any]) -> None:
    set_fake_quant(net, QuantPlan(**record["plan"]))


def _keep(net: nn.Module, record: Mapping[str, Any]) -> None:
    """Other weights, the same structure."""


_STEPS: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "prune": set_widths,
    "distill": _keep,
    "quantize": _set_plan,
}


def restore_structure(net: nn.Module, recipe: Sequence[Mapping[str, Any]]) -> None:
    """Give a net of ``build_model`` the structure behind all steps of a recipe, so that its weights can be loaded.

    Args:
        net: changed in place.
        recipe: of ``NetRecord``, oldest step first; each with its name as "step".

    Raises:
        DataError: an unknown step, or one made for another net.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False))
        >>> restore_structure(net, [{"step": "prune", "widths": {"0.weight": [3, 1, 1, 1]}, "groups": {}}])
        >>> net[0].out_channels
        3
    """
    for record in recipe:
        name = record.get("step")
        if name not in _STEPS:
            raise DataError(unknown_name("step of compression", name, _STEPS))
        _STEPS[str(name)](net, record)
        _check_entries(net, record)


def _check_entries(net: nn.Module, record: Mapping[str, Any]) -> None:
    """Raise DataError where what the next step would read of a record is of another kind, or of another net."""
    options, masks = record.get("options", {}), record.get("masks", [])
    if not isinstance(options, Mapping):
        got = f"options={options!r} of step {record['step']}"
        raise DataError(explain(got=got, need="names with values", hint="the checkpoint before that step"))
    weights = dict(net.named_parameters())
    if not isinstance(masks, list | tuple) or any(name not in weights for name in masks):
        got = f"masks={str(masks)[:100]} of step {record['step']}"
        raise DataError(explain(got=got, need="names of its weights", hint="the checkpoint before that step"))
