"""Layers whose weights are rounded to 8 bits wherever they are used, and trained all the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.models.backbones.resnet import ConvNorm

WEIGHT_LEVELS = 127
SMALLEST_STEP = 1e-8


def round_weight(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """A weight on its 8 bit grid, and the (channels,) float32 steps of the grid along ``axis``.

    Example:
        >>> rounded, steps = round_weight(torch.tensor([[1.27, 0.014]]), axis=0)
        >>> [round(value, 2) for value in rounded[0].tolist()], round(steps.item(), 2)
        ([1.27, 0.01], 0.01)
    """
    values = weight.float()
    others = [other for other in range(values.ndim) if other != axis]
    steps = (values.detach().abs().amax(others) / WEIGHT_LEVELS).clamp_min(SMALLEST_STEP)
    zeros = torch.zeros_like(steps, dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(values, steps, zeros, axis, -WEIGHT_LEVELS, WEIGHT_LEVELS)
    return rounded.to(weight.dtype), steps


class RoundsWeight:
    """What layers with a rounded weight have in common.

    Attributes:
        axis: of the weight's output channels.
    """

    axis = 0
    weight: Tensor

    def rounded(self) -> Tensor:
        """The weight that the layer multiplies with."""
        return round_weight(self.weight, self.axis)[0]


class QuantConv2d(RoundsWeight, nn.Conv2d):
    """A convolution whose weight is rounded."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Conv2d."""
        return self._conv_forward(input, self.rounded(), self.bias)


class QuantConvNorm(RoundsWeight, ConvNorm):
    """A convolution with a normalisation behind it, whose weight is rounded."""

    def forward(self, input: Tensor) -> Tensor:
        """As ConvNorm."""
        return self.norm(self._conv_forward(input, self.rounded(), self.bias))


class QuantConvTranspose2d(RoundsWeight, nn.ConvTranspose2d):
    """A transposed convolution, in one group, whose weight is rounded."""

    axis = 1

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As nn.ConvTranspose2d."""
        return F.conv_transpose2d(
            input,
            self.rounded(),
            self.bias,
            stride=self.stride,
            padding=self.padding,  # type: ignore[arg-type]
            output_padding=self.output_padding,
            dilation=self.dilation,
        )


class QuantLinear(RoundsWeight, nn.Linear):
    """A linear layer whose weight is rounded."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear."""
        return F.linear(input, self.rounded(), self.bias)


ROUNDED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantConv2d,
    ConvNorm: QuantConvNorm,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.Linear: QuantLinear,
}
"""Layers by what takes their place; no other sub-classes, whose forward may do something else."""
