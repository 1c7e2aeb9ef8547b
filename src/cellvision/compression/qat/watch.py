"""What a net computes, call by call: its modules, and the functions between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cellvision.models.backbones.norms import FrozenBatchNorm
from cellvision.models.structure.fake_quant import FakeQuant
from cellvision.models.structure.rounded_layers import ROUNDED, ConvNorm, RoundsWeight

NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d, FakeQuant)
"""Not there at all once a net is exported, or not counted here."""

NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)

VIEWS = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "contiguous", "squeeze", "unsqueeze"),
    *("expand", "chunk", "split", "roll", "getitem", "float", "to", "type"),
}
"""Functions whose values are those of their first argument."""

CARRIERS = {
    *("add", "iadd", "sub", "isub", "mul", "imul", "div", "truediv", "itruediv", "matmul", "rmatmul", "bmm"),
    *("relu", "relu6", "leaky_relu", "hardtanh", "gelu", "silu", "hardswish"),
    *("cat", "stack", "mean", "amax", "pad", "interpolate"),
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "batch_norm", "group_norm", "layer_norm", "dropout"),
    *("conv2d", "linear", "roi_align", "grid_sample", "grid_sampler", "index_copy"),
}
"""Functions that make feature maps of feature maps. Others (sigmoid, topk, gather, comparisons) end a path: behind them
are scores, boxes and indices, or an attention that stays float."""

FIRST_ONLY = {"conv2d", "linear", "batch_norm", "group_norm", "layer_norm", "roi_align", "grid_sample", "grid_sampler"}
"""Carriers of which only the first argument is a map; the others are weights, places and grids."""


@dataclass(eq=False)
class Call:
    """A call of a module that has no modules of its own, or of a function outside of such.

    Attributes:
        name, module: what was called; of a function the module in which it was.
        function: its name; "" for a module.
        within: for what a module computes before it calls its child, the child's name: a convolution before the
            normalisation that it holds, a normalisation before its activation; else "".
        sources: for each tensor that came in, the call that made it, or None where none did.
        users: calls that take what it gave.
        takes_negative, gives_negative: whether any value that came in first, or that it gave, can be below 0: of
            layers and norms always, of others where one was or where one came in that could.
    """

    name: str
    module: nn.Module
    function: str
    within: str
    sources: list[Call | None]
    takes_negative: bool
    gives_negative: bool
    users: list[Call] = field(default_factory=list)

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies by weights that can be rounded."""
        return _is_weighted(self.module) and self.function in ("", "conv2d")

    @property
    def is_norm(self) -> bool:
        """Whether it normalises by fixed statistics, which a layer before it can take in."""
        return is_batch_norm(self.module) and self.function in ("", "batch_norm")


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module normalises by running statistics: torch's, torchvision's, timm's or ours."""
    frozen = type(module).__name__ in ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
    return isinstance(module, nn.modules.batchnorm._BatchNorm | FrozenBatchNorm) or frozen


def watch(net: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """Every call while ``run`` runs, in order."""
    watcher = _Watcher(net)
    with ExitStack() as stack, torch.no_grad():
        for module in net.modules():
            for handle in (
                module.register_forward_pre_hook(watcher.begin, with_kwargs=True),
                module.register_forward_hook(watcher.end, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        stack.enter_context(_Functions(watcher))
        run()
    return watcher.calls


class _Watcher:
    def __init__(self, net: nn.Module) -> None:
        self.calls: list[Call] = []
        self._made: dict[int, Call] = {}  # by the identity of what was made; kept, so that none is used again
        self._kept: list[Tensor] = []
        self._names = {module: name for name, module in net.named_modules()}
        # What runs, from the outside in, and whether its first tensor had a value below 0
        self._running: list[tuple[nn.Module, bool]] = [(net, False)]
        self._inside = 0  # so many modules without modules of their own are running

    def begin(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A module is called."""
        is_whole = _is_whole(module)
        tensors = _find_tensors((given, named)) if is_whole else []
        self._running.append((module, _has_negative(tensors)))  # before, as the call may work in place
        self._inside += is_whole

    def end(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], found: Any) -> None:
        """A module is done."""
        _, takes_negative = self._running.pop()
        if not _is_whole(module):
            return
        self._inside -= 1
        sources = self._find_sources((given, named))
        if self._inside or not isinstance(found, Tensor):
            return
        if isinstance(module, NOTHING) or (isinstance(module, nn.Sequential) and not len(module)):
            self._pass_on(found, sources)
            return
        self._note(self._names[module], module, "", "", sources, takes_negative, [found])

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A function is called."""
        name = getattr(function, "__name__", "").strip("_")
        if self._inside or name not in CARRIERS | VIEWS:
            return function(*args, **named)
        tensors = _find_tensors((args, named))[: 1 if name in FIRST_ONLY | VIEWS else None]
        takes_negative = _has_negative(tensors)
        found = function(*args, **named)
        results, sources = _find_tensors([found]), self._find_sources(tensors)
        if name in VIEWS:
            for result in results:
                self._pass_on(result, sources)
        elif any(source is not None for source in sources):  # else nothing but weights
            self._note_function(name, sources, takes_negative, results)
        return found

    def _note_function(
        self, name: str, sources: list[Call | None], takes_negative: bool, results: Sequence[Tensor]
    ) -> None:
        owner, _ = self._running[-1]
        path, within = self._names[owner], ""
        if is_batch_norm(owner):  # in as many steps as it likes
            name, within = "batch_norm", f"{path}.act"
            before = next((source for source in sources if source is not None), None)
            if before is not None and before.module is owner:
                for result in results:
                    self._pass_on(result, [before])
                return
        elif isinstance(owner, ConvNorm):
            within = f"{path}.norm"
        self._note(path, owner, name, within, sources, takes_negative, results)

    def _note(
        self,
        name: str,
        module: nn.Module,
        function: str,
        within: str,
        sources: list[Call | None],
        takes_negative: bool,
        results: Sequence[Tensor],
    ) -> None:
        known = [source for source in sources if source is not None]
        takes = takes_negative or any(source.gives_negative for source in sources[:1] if source is not None)
        call = Call(name, module, function, within, sources, takes, gives_negative=True)
        if function in ("relu", "relu6") or (not function and isinstance(module, NEVER_NEGATIVE)):
            call.gives_negative = False
        elif not call.is_layer and not call.is_norm:
            call.gives_negative = _has_negative(results) or any(source.gives_negative for source in known)
        for source in known:
            source.users.append(call)
        for result in results:
            self._kept.append(result)
            self._made[id(result)] = call
        self.calls.append(call)

    def _pass_on(self, result: Tensor, sources: Sequence[Call | None]) -> None:
        """The values of a result are those of its first source."""
        self._kept.append(result)
        if sources and sources[0] is not None:
            self._made[id(result)] = sources[0]
        else:
            self._made.pop(id(result), None)

    def _find_sources(self, given: Any) -> list[Call | None]:
        return [self._made.get(id(tensor)) for tensor in _find_tensors(given)]


class _Functions(TorchFunctionMode):
    """Shows a watcher the functions of torch that are called."""

    def __init__(self, watcher: _Watcher) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.watcher.call(func, args, kwargs or {})


def _is_weighted(module: nn.Module) -> bool:
    return type(module) in ROUNDED or isinstance(module, RoundsWeight)


def _is_whole(module: nn.Module) -> bool:
    """Whether a module has no others inside, but for those that round."""
    return all(isinstance(child, FakeQuant) for child in module.children())


def _has_negative(tensors: Sequence[Tensor]) -> bool:
    if not tensors:
        return False
    return not tensors[0].numel() or bool((tensors[0] < 0).any())


def _find_tensors(given: Any) -> list[Tensor]:
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, dict):
        given = list(given.values())
    return [tensor for item in given for tensor in _find_tensors(item)] if isinstance(given, list | tuple) else []
