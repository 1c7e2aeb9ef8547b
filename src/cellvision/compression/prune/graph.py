"""Which layers of a net share their channels: torch-pruning's graph, with what it cannot see for itself.

torch-pruning follows gradients from the results back to the image. Five things of our nets it would get wrong:

- A map of one channel that weighs all channels of another (a gate) would be tied to them. The trace is cut there.
- So would a mean or maximum over the channels, which has one channel whatever the width.
- Queries, keys and values that are taken apart along the last axis, for whose heads it finds other channels than there
  are. The trace is cut there too.
- A convolution that holds its normalisation (ConvNorm) hides it.
- Normalisations without parameters, and convolutions of several groups, are unknown to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from cellvision.compression.prune.runs import run_layers
from cellvision.errors import ConfigError, explain
from cellvision.models.base import SegNet, keep_modes

_JOINS = {"add", "__add__", "__radd__", "mul", "__mul__", "__rmul__", "sub", "__sub__", "div", "__truediv__"}
_REDUCTIONS = {"mean", "amax", "amin", "sum"}


class ChannelGraph(tp.DependencyGraph):
    """The graph of a net.

    Attributes:
        ends: gradient functions of what must keep its channels: the net's results, and gates.
        parted: the same of what is taken apart for attention heads.
    """

    def __init__(self, net: SegNet, image: Tensor) -> None:
        """Trace the net, which is the same afterwards.

        Args:
            net: any.
            image: (1, C, H, W) raw counts, large enough that no map shrinks to 1 px.

        Raises:
            ConfigError: a transformer that takes queries, keys and values apart; torch-pruning would search for ever.
        """
        super().__init__()
        self.ends: set[Any] = set()
        self.parted: set[Any] = set()
        for kind in {type(module) for module in net.modules() if _is_frozen_norm(module)}:
            self.register_customized_layer(kind, _FrozenNormPruner())
        with _ready_to_trace(net):
            self.build_dependency(net, image, forward_fn=run_layers, verbose=False)
        if any(node.type == tp.ops.OPTYPE.UNBIND for node in self.module2node.values()):
            got = f"{net.spec.name} with attention whose channels cannot be followed"
            raise ConfigError(explain(got=got, need="a convolutional net to prune", hint="model.encoder=convnext_atto"))

    def get_pruner_of_module(self, module: Any) -> Any:
        """As torch-pruning, but the two sides of a convolution of several groups belong together."""
        if isinstance(module, _ConvNd) and module.groups > 1 and module.in_channels == module.out_channels:
            return self.REGISTERED_PRUNERS[tp.ops.OPTYPE.DEPTHWISE_CONV]
        return super().get_pruner_of_module(module)

    def _trace(self, model: Any, example_inputs: Any, forward_fn: Any, output_transform: Any) -> dict[Any, Any]:
        owners: dict[Any, nn.Module] = {}
        calls: Counter[nn.Module] = Counter()

        def note(module: nn.Module, found: Tensor) -> None:
            owners[found.grad_fn] = module
            calls[module] += 1

        kinds = tuple(tp.ops.type2class(kind) for kind in self.REGISTERED_PRUNERS) + tuple(self.CUSTOMIZED_PRUNERS)
        kept_out = set(self.IGNORED_LAYERS_IN_TRACING)
        watched = [each for each in model.modules() if isinstance(each, kinds) and each not in kept_out]
        with _watching(watched, note), _Cutting() as cutting:
            results = forward_fn(model, example_inputs)
        # Multiplied, so that the gradient function of an end is its own and not that of the last layer.
        ends = [found * 1 for found in (*results, *cutting.gates)]
        parted = [found * 1 for found in cutting.parted]
        self.ends, self.parted = ({found.grad_fn for found in each} for each in (ends, parted))
        reused = [module for module, count in calls.items() if count > 1]
        nodes: dict[Any, Any] = {}
        seen: set[Any] = set()
        for found in (*ends, *parted, *cutting.reduced):
            self._trace_computational_graph(nodes, found, owners, reused, visited=seen)
        return nodes


class _Cutting(TorchFunctionMode):
    """Lets no gradient through where a tensor has one channel however many there were before, nor into attention heads.

    Attributes:
        gates: tensors of one channel that were joined with maps of several.
        reduced: results of reductions over the channels.
        parted: tensors that were taken apart along the last axis.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[Tensor] = []
        self.reduced: list[Tensor] = []
        self.parted: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _JOINS:
            args = self._cut_gate(args)
        found = func(*args, **kwargs)
        if name in _REDUCTIONS and args[0].ndim == 4 and _get_dims(args, kwargs) in (1, (1,), [1]):
            if found.requires_grad:
                self.reduced.append(found)
            return found.detach()
        if name == "chunk" and _get_dims(args[1:], kwargs) in (-1, args[0].ndim - 1):
            self.parted.append(args[0])
            return tuple(part.detach() for part in found)
        return found

    def _cut_gate(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        pair = args[:2]
        if len(pair) < 2 or not all(isinstance(each, Tensor) and each.ndim == 4 for each in pair):
            return args
        widest = max(each.shape[1] for each in pair)
        is_gate = [each.shape[1] == 1 < widest for each in pair]
        self.gates += [each for each, gates in zip(pair, is_gate, strict=True) if gates and each.requires_grad]
        return (*(each.detach() if gates else each for each, gates in zip(pair, is_gate, strict=True)), *args[2:])


class _FrozenNormPruner(tp.BasePruningFunc):
    """Tells torch-pruning the width of a normalisation without parameters; nothing is cut through it."""

    def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        return len(layer.running_mean)  # type: ignore[arg-type]

    def get_in_channels(self, layer: nn.Module) -> int:
        return self.get_out_channels(layer)


def _is_frozen_norm(module: nn.Module) -> bool:
    return "running_mean" in module._buffers and not isinstance(module, _NormBase)


def _get_dims(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs.get("dim", args[1] if len(args) > 1 else None)


@contextmanager
def _ready_to_trace(net: nn.Module) -> Iterator[None]:
    """In evaluation, with gradients for all parameters: through a frozen layer the trace would not pass."""
    trained = {parameter: parameter.requires_grad for parameter in net.parameters()}
    try:
        with keep_modes(net), torch.enable_grad():
            net.eval().requires_grad_(True)
            yield
    finally:
        for parameter, is_trained in trained.items():
            parameter.requires_grad_(is_trained)


@contextmanager
def _watching(modules: list[nn.Module], note: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Call ``note`` with every result of the modules; of a convolution that holds others, with its own part."""
    holders = [module for module in modules if isinstance(module, nn.Conv2d) and next(module.children(), None)]
    plain = [module for module in modules if module not in set(holders)]
    hooks = [module.register_forward_hook(lambda module, _, found: note(module, found)) for module in plain]
    for module in holders:
        module._conv_forward = _spy(module, note)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in holders:
            del module._conv_forward


def _spy(module: nn.Conv2d, note: Callable[[nn.Module, Tensor], None]) -> Callable[..., Tensor]:
    convolve = module._conv_forward

    def run(*args: Any) -> Tensor:
        found = convolve(*args)
        note(module, found)
        return found

    return run
