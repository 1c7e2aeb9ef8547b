"""Layers that compute in float what 8 bit integers would give, so that a net can learn to live with the rounding.

Weights are signed with one scale per output channel, -127..127. Such rounding commutes with whatever scales a channel
afterwards, so that a batch normalisation can be folded into the layer after training without another integer.
Activations have one scale per tensor and no offset: 0..255 where they cannot be negative, else -128..127.

Nothing is renamed or replaced: a layer keeps its parameters and their names, so that optimizers, averages and weights
of the float net go on to fit. What is added are the ranges of activations, as buffers of a sub-module.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018).
Ranges of activations can be learned: their gradient is that of Esser et al., "Learned Step Size Quantization" (2020),
and what is trained is their logarithm, as in Jain et al., "Trained Quantization Thresholds" (2020). Those of weights
always follow the largest weight of a channel: only so can a normalisation be folded in without another rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cellvision.errors import ConfigError, explain
from cellvision.models.structure.rounded_layers import ROUNDED, SMALLEST_STEP

LEVELS = {False: (0, 255), True: (-128, 127)}
"""Integers of an activation by whether it can be negative."""

DECAY = 0.99  # of the running range, per batch

GAIN = 100.0
"""So much faster than a weight a learned range moves: by GAIN times the learning rate, in shares of itself.

A step of Adam is about the learning rate long, however small the gradient is. Weights are of the order of 0.1, so that
2e-4 is much for them; a range would take thousands of such steps to halve.
"""


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """Where a net rounds; plain data, so that a checkpoint can hold it.

    Attributes:
        layers: names of the modules whose weights are rounded.
        inputs: modules whose input is rounded because nothing rounds it where it is made; by name, whether it can be
            negative.
        outputs: the same for what modules give out.
        shared: modules that pass values on (maximum pooling, repeating): by name, the module of ``outputs`` or
            ``inputs`` whose scale theirs is.
        learned: ranges of activations are trained like weights and do not follow the batches.
    """

    layers: Sequence[str] = ()
    inputs: Mapping[str, bool] = field(default_factory=dict)
    outputs: Mapping[str, bool] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    learned: bool = False

    def to_plain(self) -> dict[str, Any]:
        """Lists and dicts, for a checkpoint."""
        return {**asdict(self), "layers": list(self.layers)}


class FakeQuant(nn.Module):
    """An activation rounded to 8 bits, its range followed while training.

    The gradient passes where the value lies within the range and stops elsewhere.

    Attributes:
        signed: whether the activation can be negative.
        observing: whether the range follows the batches of training; switched off for the last epochs.
        rounding: whether values are rounded; without, only the range is followed.
        bound: () float32, largest absolute value that is kept; 0 before the first batch, which then sets it.
        growth: () float32, what has been learned: ``bound`` is kept times exp(GAIN * growth). None where nothing is.
    """

    bound: Tensor
    growth: nn.Parameter | None

    def __init__(self, *, signed: bool, learned: bool = False) -> None:
        """Begin without a range."""
        super().__init__()
        self.signed, self.observing, self.rounding = signed, True, True
        self.register_buffer("bound", torch.zeros(()))
        self.growth = nn.Parameter(torch.zeros(())) if learned else None

    def forward(self, maps: Tensor) -> Tensor:
        """The same shape and dtype, on the grid of ``step``."""
        if self.training and self.observing:
            self._observe(maps.detach())
        if not self.rounding:
            return maps
        low, high = self.levels
        values, step = maps.float(), self.step
        if self.growth is None or not torch.is_grad_enabled():
            zero = torch.zeros((), dtype=torch.int32, device=maps.device)
            return torch.fake_quantize_per_tensor_affine(values, step, zero, low, high).to(maps.dtype)
        # Not scaled down by the number of values as in Esser et al.: Adam undoes any factor, or loses what falls below
        # its epsilon.
        steps = (values / step).clamp(low, high)
        return ((steps + (steps.round() - steps).detach()) * step).to(maps.dtype)

    @property
    def levels(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return LEVELS[self.signed]

    @property
    def step(self) -> Tensor:
        """() float32: what one integer stands for."""
        bound = self.bound if self.growth is None else self.bound * (GAIN * self.growth).exp()
        return (bound / LEVELS[self.signed][1]).clamp_min(SMALLEST_STEP)

    @torch.no_grad()
    def _observe(self, maps: Tensor) -> None:
        """Follow the range of this batch, over all processes: every one has the same ranges at any time."""
        values = maps.abs() if self.signed else maps
        largest = values.amax().float().clamp_min(0) if maps.numel() else torch.zeros((), device=maps.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        if largest == 0 or not largest.isfinite():
            return  # no cell in any box, or a step that the task skips
        if self.bound == 0:
            self.bound.copy_(largest)
        elif self.growth is None:
            self.bound.lerp_(largest, 1 - DECAY)


def set_fake_quant(net: nn.Module, plan: QuantPlan) -> None:
    """Make ``net`` round where ``plan`` says, in place.

    Raises:
        ConfigError: the plan names modules that the net does not have, or layers whose weight cannot be rounded.
    """
    for name in plan.layers:
        layer = _get(net, name)
        if type(layer) not in ROUNDED or (isinstance(layer, nn.ConvTranspose2d) and layer.groups != 1):
            need = f"one of {', '.join(kind.__name__ for kind in ROUNDED)}, transposed ones in one group"
            raise ConfigError(explain(got=f"layer {name} is a {type(layer).__name__}", need=need, hint="another plan"))
        layer.__class__ = ROUNDED[type(layer)]
    device = next(net.parameters()).device
    for name, signed in plan.inputs.items():
        module = _get(net, name)
        module.add_module("input_quant", FakeQuant(signed=signed, learned=plan.learned).to(device))
        module.register_forward_pre_hook(_round_input)
    for name, signed in plan.outputs.items():
        module = _get(net, name)
        module.add_module("output_quant", FakeQuant(signed=signed, learned=plan.learned).to(device))
        module.register_forward_hook(_round_output)
    for name, source in plan.shared.items():
        module, origin = _get(net, name), _get(net, source)
        # Kept out of the module's children: it is saved and trained where it comes from.
        module.__dict__["shared_quant"] = (
            origin.get_submodule("output_quant" if source in plan.outputs else "input_quant"),
        )
        module.register_forward_hook(_round_shared)


def remove_fake_quant(net: nn.Module) -> None:
    """Let ``net`` compute in float what it has learned to round, in place; a net that does not round stays as it is."""
    floats = {kind: before for before, kind in ROUNDED.items()}
    for module in net.modules():
        if type(module) in floats:
            module.__class__ = floats[type(module)]
        for name in ("input_quant", "output_quant"):
            if isinstance(getattr(module, name, None), FakeQuant):
                delattr(module, name)
        module.__dict__.pop("shared_quant", None)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_round_input, _round_output, _round_shared)]:
                del hooks[key]


def is_rounding(net: nn.Module) -> bool:
    """Whether a net rounds anything."""
    return next(find_fake_quants(net), None) is not None


def find_fake_quants(net: nn.Module) -> Iterator[FakeQuant]:
    """Every rounded activation of a net."""
    return (module for module in net.modules() if isinstance(module, FakeQuant))


def set_phase(net: nn.Module, *, observing: bool, rounding: bool) -> None:
    """Whether ranges follow the batches, and whether activations are rounded yet."""
    for quant in find_fake_quants(net):
        quant.observing, quant.rounding = observing, rounding


def _round_input(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.get_submodule("input_quant")(given[0]), *given[1:])


def _round_output(module: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:
    rounded: Tensor = module.get_submodule("output_quant")(found)
    return rounded


def _round_shared(module: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:
    """Nothing in PyTorch, as the values lie on the grid already; a graph is told that they do."""
    if not torch.onnx.is_in_onnx_export():
        return found
    rounded: Tensor = module.__dict__["shared_quant"][0](found)
    return rounded


def _get(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        got, need = f"the plan of rounding names {name!r}", "modules of the net"
        raise ConfigError(explain(got=got, need=need, hint="the plan of this net")) from error
