"""Where a net is to round: found by watching one image go through it, so that it holds for any net."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from cellvision.compression.patterns import check_patterns
from cellvision.compression.qat.watch import Call, watch
from cellvision.errors import ConfigError, explain
from cellvision.models.structure.fake_quant import QuantPlan

NARROW = 3
"""Input channels up to which a first layer stays float: as integers it is slower, and counts keep their precision."""

RECTIFIERS = (nn.ReLU, nn.ReLU6)
JOINS = ("Add", "Mean", "Mul", "Multiply", "Cat", "Concatenate")
BETWEEN = (nn.Sigmoid, nn.Hardsigmoid, nn.AvgPool2d, nn.AdaptiveAvgPool2d, *RECTIFIERS)
PASSING = (nn.MaxPool2d, nn.Upsample, nn.Flatten)
"""Give some of the values that come in: rounded once, they need no scale of their own."""


def plan_rounding(
    net: nn.Module, run: Callable[[], Any], *, keep_float: Sequence[str] = (), learned: bool = False
) -> QuantPlan:
    """The plan by which all layers between the first and the last ones of ``net`` round.

    The last layer of every path stays float, as does a first one of up to 3 channels. Between two rounded layers
    everything is rounded that ONNX Runtime computes on integers, if it is a module; what a function makes is rounded
    where a layer takes it.

    Args:
        net: float, in evaluation mode.
        run: puts an image through every layer of the net, without gradients.
        keep_float: names of layers that stay float, or patterns with ``*``.
        learned: see QuantPlan.

    Raises:
        ConfigError: a pattern that fits no layer, or no layer is left.
    """
    calls = watch(net, run)
    layers = _choose_layers(calls, keep_float)
    leading = _find_linked([call for call in calls if call.name in layers], backwards=True)
    behind = _find_linked([call for call in calls if call.is_layer], backwards=False)
    for call in calls:  # what becomes one with a rounded layer ends in integers too
        if call in leading and _is_fused(call):
            leading.add(call.users[0])
    ends = [call for call in calls if call in leading and not _is_fused(call)]
    ends = [call for call in ends if call.is_layer or _is_passing(call) or (call in behind and _is_between(call))]
    places = _place(ends)
    for call in calls:
        if call.is_layer and call.name in layers and not any(source in places.rounded for source in call.sources[:1]):
            _add(places.inputs, call.name, call.takes_negative)
    return QuantPlan(
        layers=sorted(layers), inputs=places.inputs, outputs=places.outputs, shared=places.shared, learned=learned
    )


@dataclass(eq=False)
class _Places:
    """The parts of a plan while it is made, and the calls whose result is rounded."""

    inputs: dict[str, bool] = field(default_factory=dict)
    outputs: dict[str, bool] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    rounded: set[Call] = field(default_factory=set)


def _place(ends: Sequence[Call], without: Collection[str] = ()) -> _Places:
    """Where the results of calls are rounded; modules ``without`` a single scale to pass on are left out."""
    places = _Places()
    for call in ends:
        if not _is_passing(call):
            _add(places.inputs if call.within else places.outputs, call.within or call.name, call.gives_negative)
            places.rounded.add(call)
        elif call.name not in without:
            source = call.sources[0]
            origin = places.shared.get(source.name, source.within or source.name) if source in places.rounded else ""
            if places.shared.setdefault(call.name, origin) != origin:  # used on maps of two scales
                return _place(ends, {*without, call.name})
            if origin:
                places.rounded.add(call)
    places.shared = {name: origin for name, origin in places.shared.items() if origin}
    return places


def _add(signs: dict[str, bool], name: str, negative: bool) -> None:
    signs[name] = signs.get(name, False) or negative


def _choose_layers(calls: Sequence[Call], keep_float: Sequence[str]) -> set[str]:
    """Names of the layers to round: weighted, and with a weighted layer behind them."""
    weighted = [call for call in calls if call.is_layer]
    before = _find_linked(weighted, backwards=True, with_start=False)
    behind = _find_linked(weighted, backwards=False, with_start=False)
    chosen = {call.name for call in weighted if call in before and (call in behind or not _is_narrow(call.module))}
    chosen -= {call.name for call in weighted if call not in before}  # a layer that is the last of any path
    if chosen:
        check_patterns("compress.qat.keep_float", keep_float, chosen)
    chosen = {name for name in chosen if not any(fnmatchcase(name, pattern) for pattern in keep_float)}
    if not chosen:
        got = f"{len(weighted)} layers with weights, none of them before another or not kept in float"
        raise ConfigError(explain(got=got, need="a layer to round", hint="fewer names in compress.qat.keep_float"))
    return chosen


def _is_narrow(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.in_channels <= NARROW


def _find_linked(starts: Sequence[Call], *, backwards: bool, with_start: bool = True) -> set[Call]:
    """All calls before (backwards) or behind one of ``starts``, and the starts themselves where asked for."""
    found: set[Call] = set(starts) if with_start else set()
    waiting = list(starts)
    while waiting:
        call = waiting.pop()
        for other in filter(None, call.sources if backwards else call.users):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def _is_passing(call: Call) -> bool:
    is_plain = not isinstance(call.module, nn.Upsample) or call.module.mode == "nearest"
    return not call.function and isinstance(call.module, PASSING) and is_plain


def _is_between(call: Call) -> bool:
    is_module = not call.function and (isinstance(call.module, BETWEEN) or type(call.module).__name__ in JOINS)
    return call.is_norm or is_module


def _is_fused(call: Call) -> bool:
    """Whether the call becomes one with its only user, so that nothing is rounded between the two."""
    if len(call.users) != 1:
        return False
    (user,) = call.users
    if user.is_norm:
        return call.is_layer
    is_sum = type(call.module).__name__ == "Add" and not call.function
    return not user.function and isinstance(user.module, RECTIFIERS) and (call.is_layer or call.is_norm or is_sum)
