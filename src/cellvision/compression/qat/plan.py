"""Where a net is to round: found by watching one image go through it, so that it holds for any net."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, explain
from cellvision.models.structure.fake_quant import ROUNDED, QuantPlan

NARROW = 3
"""Input channels up to which a first layer stays float: as integers it is slower, and counts keep their precision."""

RECTIFIERS = (nn.ReLU, nn.ReLU6)
JOINS = ("Add", "Mul", "Multiply", "Cat", "Concatenate")
BETWEEN = (nn.BatchNorm2d, nn.Sigmoid, nn.AvgPool2d, nn.AdaptiveAvgPool2d, *RECTIFIERS)
PASSING = (nn.MaxPool2d, nn.Upsample)
"""Give some of the values that come in: rounded once, they need no scale of their own."""

NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
"""Not there at all once a net is exported."""


@dataclass(eq=False)
class Call:
    """One call of a module that has no modules of its own.

    Attributes:
        name, module: what was called.
        sources: for each tensor that came in, the call that made it, or None where no module did.
        users: calls that take what it gave.
        takes_negative, gives_negative: whether any value that came in first, or that it gave, is below 0.
    """

    name: str
    module: nn.Module
    sources: list[Call | None]
    takes_negative: bool
    gives_negative: bool
    users: list[Call] = field(default_factory=list)


def plan_rounding(
    net: nn.Module, run: Callable[[], Any], *, keep_float: Sequence[str] = (), learned: bool = False
) -> QuantPlan:
    """The plan by which all layers between the first and the last ones of ``net`` round.

    The last layer of every path stays float, as does a first one of up to 3 channels. Between two rounded layers
    everything is rounded that ONNX Runtime computes on integers.

    Args:
        net: float, in evaluation mode.
        run: puts an image through the net, without gradients.
        keep_float: names of layers that stay float, or patterns with ``*``.
        learned: see QuantPlan.

    Raises:
        ConfigError: a pattern that fits no layer, or no layer is left.
    """
    calls = watch(net, run)
    layers = _choose_layers(calls, keep_float)
    leading = _find_linked([call for call in calls if call.name in layers], backwards=True)
    behind = _find_linked([call for call in calls if type(call.module) in ROUNDED], backwards=False)
    for call in calls:  # what becomes one with a rounded layer ends in integers too
        if call in leading and _is_fused(call):
            leading.add(call.users[0])
    outputs: dict[str, bool] = {}
    origins: dict[str, str] = {}
    rounded: set[Call] = set()
    for call in calls:
        if call not in leading or _is_fused(call):
            continue
        if isinstance(call.module, PASSING):
            if _pass_on(call, rounded, origins):
                rounded.add(call)
        elif type(call.module) in ROUNDED or (call in behind and _is_between(call)):
            outputs[call.name] = outputs.get(call.name, False) or call.gives_negative
            rounded.add(call)
    shared = {name: origin for name, origin in origins.items() if origin}
    inputs: dict[str, bool] = {}
    for call in calls:
        if call.name in layers and call.sources[0] not in rounded:
            inputs[call.name] = inputs.get(call.name, False) or call.takes_negative
    return QuantPlan(layers=sorted(layers), inputs=inputs, outputs=outputs, shared=shared, learned=learned)


def _pass_on(call: Call, rounded: set[Call], origins: dict[str, str]) -> bool:
    """Whether what a call passes on is rounded; notes where, "" for nowhere."""
    source = call.sources[0] if call.sources else None
    origin = origins.get(source.name, source.name) if source in rounded and source is not None else ""
    if origins.setdefault(call.name, origin) != origin:
        got = f"{call.name} is used on maps of two scales"
        raise ConfigError(explain(got=got, need="one module for each", hint="modules of their own"))
    return bool(origin)


def watch(net: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """Every call of a module without modules of its own while ``run`` runs, in order."""
    calls: list[Call] = []
    made: dict[int, Call] = {}  # by the identity of what was made; ``kept`` keeps identities from being used again
    kept: list[Tensor] = []
    lows: list[bool] = []

    def begin(module: nn.Module, given: tuple[Any, ...]) -> None:
        tensors = _find_tensors(given)
        lows.append(bool(tensors) and bool((tensors[0] < 0).any()))  # before, as the call may work in place

    def end(module: nn.Module, given: tuple[Any, ...], found: Any) -> None:
        sources = [made.get(id(tensor)) for tensor in _find_tensors(given)]
        takes_negative = lows.pop()
        if not isinstance(found, Tensor):
            return
        kept.append(found)
        if isinstance(module, NOTHING):
            if sources and sources[0] is not None:
                made[id(found)] = sources[0]
            return
        low = bool((found < 0).any())
        call = Call(names[module], module, sources, takes_negative=takes_negative, gives_negative=low)
        for source in filter(None, sources):
            source.users.append(call)
        made[id(found)] = call
        calls.append(call)

    names = {module: name for name, module in net.named_modules() if next(module.children(), None) is None}
    with _hooked(list(names), begin, end), torch.no_grad():
        run()
    return calls


@contextmanager
def _hooked(modules: Sequence[nn.Module], begin: Callable[..., Any], end: Callable[..., Any]) -> Iterator[None]:
    handles = [handle for module in modules for handle in _hook(module, begin, end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, begin: Callable[..., Any], end: Callable[..., Any]) -> tuple[Any, Any]:
    return module.register_forward_pre_hook(begin), module.register_forward_hook(end)


def _find_tensors(given: Any) -> list[Tensor]:
    if isinstance(given, Tensor):
        return [given]
    return [tensor for item in given for tensor in _find_tensors(item)] if isinstance(given, list | tuple) else []


def _choose_layers(calls: Sequence[Call], keep_float: Sequence[str]) -> set[str]:
    """Names of the layers to round: weighted, and with a weighted layer behind them."""
    weighted = [call for call in calls if type(call.module) in ROUNDED]
    before = _find_linked(weighted, backwards=True, with_start=False)
    behind = _find_linked(weighted, backwards=False, with_start=False)
    chosen = {call.name for call in weighted if call in before and (call in behind or not _is_narrow(call.module))}
    chosen -= {call.name for call in weighted if call not in before}  # a layer that is the last of any path
    for pattern in keep_float:
        fitting = {name for name in chosen if fnmatchcase(name, pattern)}
        if not fitting:
            need = f"names among {', '.join(sorted(chosen)[:6])}, .."
            raise ConfigError(
                explain(got=f"keep_float has {pattern!r}, which fits no layer", need=need, hint="a pattern")
            )
        chosen -= fitting
    if not chosen:
        got = f"{len(weighted)} layers with weights, none of them before another or not kept in float"
        raise ConfigError(explain(got=got, need="a layer to round", hint="fewer names in keep_float"))
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


def _is_between(call: Call) -> bool:
    return isinstance(call.module, BETWEEN) or type(call.module).__name__ in JOINS


def _is_fused(call: Call) -> bool:
    """Whether the call becomes one with its only user, so that nothing is rounded between the two."""
    if len(call.users) != 1:
        return False
    (user,) = call.users
    if isinstance(user.module, nn.BatchNorm2d):
        return type(call.module) in ROUNDED
    is_layer = type(call.module) in ROUNDED or isinstance(call.module, nn.BatchNorm2d)
    return isinstance(user.module, RECTIFIERS) and (is_layer or type(call.module).__name__ == "Add")
