"""A net that learned to round, made ready to become a graph with the integers of its training.

Weights become 8 bit constants, and activations lie between QuantizeLinear and DequantizeLinear with the trained scales:
no calibration, and no other choice of what stays float.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from cellvision.compression.prune.runs import run_layers
from cellvision.compression.qat.watch import watch
from cellvision.models.base import SegNet
from cellvision.models.structure.fake_quant import LEVELS, FakeQuant, remove_fake_quant
from cellvision.models.structure.rounded_layers import (
    QuantConv2d,
    QuantConvNorm,
    QuantConvTranspose2d,
    QuantLinear,
    RoundsWeight,
    round_weight,
)

FORMS = ("onnxruntime", "tensorrt")


def to_float(net: SegNet) -> SegNet:
    """A copy of a net with the same weights that rounds nothing, on the CPU and in evaluation mode."""
    copied = copy.deepcopy(net).cpu().eval().requires_grad_(False)
    remove_fake_quant(copied)
    return copied


def to_integers(net: SegNet, *, form: str = "onnxruntime") -> SegNet:
    """A copy of a net that rounds, on the CPU and in evaluation mode, whose graph holds integers.

    In PyTorch its results are those of ``net``, but for the last bit, and but for the wider steps of "tensorrt".

    Args:
        net: after ``set_fake_quant``, trained. Batch normalisations are folded into the rounded layers before them.
        form: "onnxruntime" has unsigned activations, with zero point 128 where they can be negative; "tensorrt" signed
            ones around zero, for which those that cannot be negative have steps twice as large.
    """
    copied = copy.deepcopy(net).cpu().eval().requires_grad_(False)
    _fold_norms(copied)
    for module in copied.modules():
        if isinstance(module, FakeQuant):
            module.__class__ = GridSigned if form == "tensorrt" else Grid
        elif type(module) in _INTEGER:
            assert isinstance(module, RoundsWeight)
            _, steps = round_weight(module.weight, module.axis)
            shape = [-1 if axis == module.axis else 1 for axis in range(module.weight.ndim)]
            integers = (module.weight / steps.view(shape)).round().to(torch.int8)
            module.register_buffer("integers", integers)
            module.register_buffer("steps", steps)
            module.__class__ = _INTEGER[type(module)]
    return copied


class Grid(FakeQuant):
    """A rounded activation that is written into a graph as unsigned integers."""

    dtype = torch.uint8

    def forward(self, maps: Tensor) -> Tensor:
        """As FakeQuant, and in a graph as QuantizeLinear and DequantizeLinear."""
        if not torch.onnx.is_in_onnx_export():
            return super().forward(maps)
        zero = torch.tensor(-LEVELS[True][0] if self.signed and self.dtype == torch.uint8 else 0, dtype=self.dtype)
        return _dequantize(_quantize(maps, self.step, zero), self.step, zero)


class GridSigned(Grid):
    """The same as signed integers around zero."""

    dtype = torch.int8

    @property
    def levels(self) -> tuple[int, int]:
        """Those of 8 bits with a sign, of which one that cannot be negative uses half."""
        return LEVELS[True]

    @property
    def step(self) -> Tensor:
        """() float32: what one integer stands for; 127 of them reach the bound."""
        return super().step if self.signed else super().step * (LEVELS[False][1] / LEVELS[True][1])


class _Integers(RoundsWeight):
    """A layer whose weight is written into a graph as integers."""

    integers: Tensor
    steps: Tensor

    def rounded(self) -> Tensor:
        """As of the layer in training."""
        if not torch.onnx.is_in_onnx_export():
            return super().rounded()
        return _dequantize(self.integers, self.steps, torch.zeros_like(self.steps, dtype=torch.int8), axis=self.axis)


class _IntegerConv2d(_Integers, QuantConv2d): ...


class _IntegerConvNorm(_Integers, QuantConvNorm): ...


class _IntegerConvTranspose2d(_Integers, QuantConvTranspose2d):
    axis = QuantConvTranspose2d.axis


class _IntegerLinear(_Integers, QuantLinear): ...


_INTEGER: dict[type, type] = {
    QuantConv2d: _IntegerConv2d,
    QuantConvNorm: _IntegerConvNorm,
    QuantConvTranspose2d: _IntegerConvTranspose2d,
    QuantLinear: _IntegerLinear,
}


def _quantize(maps: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    return _emit("QuantizeLinear", (maps, step, zero), {}, zero.dtype, maps)


def _dequantize(integers: Tensor, step: Tensor, zero: Tensor, axis: int | None = None) -> Tensor:
    return _emit(
        "DequantizeLinear", (integers, step, zero), {} if axis is None else {"axis": axis}, step.dtype, integers
    )


def _emit(
    operator: str, inputs: tuple[Tensor, ...], attributes: dict[str, Any], dtype: torch.dtype, like: Tensor
) -> Tensor:
    found: Tensor = torch.onnx.ops.symbolic(operator, inputs, attributes, dtype=dtype, shape=like.shape)
    return found


def _fold_norms(net: SegNet) -> None:
    """Put every batch normalisation that follows a rounded layer alone into it."""
    side = 2 * net.spec.stride
    image = torch.zeros(1, net.spec.in_channels, side, side)
    for call in watch(net, lambda: run_layers(net, image, regions=2)):
        user = call.users[0] if len(call.users) == 1 else None
        if not isinstance(call.module, RoundsWeight) or user is None or not user.is_norm:
            continue
        layer: Any = call.module
        norm: Any = user.module
        if isinstance(norm, nn.Identity | _Activation):  # a layer that is used twice
            continue
        fuse: Any = fuse_conv_bn_weights
        layer.weight, layer.bias = fuse(
            layer.weight,
            layer.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
            transpose=isinstance(layer, nn.ConvTranspose2d),
        )
        norm.__class__ = _Activation if user.within else nn.Identity


class _Activation(nn.Module):
    """What is left of a normalisation that holds an activation."""

    act: nn.Module

    def forward(self, maps: Tensor) -> Tensor:
        """The maps as the activation makes them."""
        found: Tensor = self.act(maps)
        return found
