"""The pieces a U-Net is made of.

Every join (concatenation, sum, product) is a module: quantisation later puts a scale on what modules give out, and
a join written as a bare function has nothing to hang it on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NORMS = ("batch", "group")


class Cat(nn.Module):
    """Two maps of one size side by side along the channels."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, C1 + C2, H, W) of (B, C1, H, W) and (B, C2, H, W)."""
        return torch.cat([first, second], dim=1)


class Add(nn.Module):
    """The sum of two maps."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Element by element, with broadcasting."""
        return first + second


class Mul(nn.Module):
    """The product of two maps."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Element by element, with broadcasting."""
        return first * second


def build_norm(norm: str, width: int) -> nn.Module:
    """Batch or group normalisation of ``width`` channels.

    Group normalisation suits batches of one or two, but its mean is over the whole image, at inference too: results
    depend on what else is in view, so such a net cannot be tiled. Up to 8 groups of two or more channels: a
    group of one channel has no spread where the map is a single pixel, and torch refuses it. ``width`` is even.
    """
    return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(math.gcd(width // 2, 8), width)


class ConvBlock(nn.Sequential):
    """Convolution, normalisation, ReLU; at 3 pixels twice, at 1 pixel (a change of width only) once."""

    def __init__(self, in_width: int, width: int, *, norm: str, kernel_px: int = 3) -> None:
        """From ``in_width`` to ``width`` channels; ``norm`` is one of NORMS, ``kernel_px`` 3 or 1."""
        steps: list[nn.Module] = []
        for source in (in_width, width)[: 2 if kernel_px == 3 else 1]:
            # no bias: the normalisation behind would take it away again
            conv = nn.Conv2d(source, width, kernel_px, padding=kernel_px // 2, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            steps += [conv, build_norm(norm, width), nn.ReLU(inplace=True)]
        super().__init__(*steps)


class DecoderBlock(nn.Module):
    """One level back up: halve the stride, join the encoder's map of that stride, convolve.

    Up by repeating each pixel, then 3 px convolutions. Not by transposed convolution, which has no integer kernel in
    ONNX Runtime and leaves a checkerboard; not bilinearly, which the convolutions can learn and which costs more.
    The width is reduced before repeating: a 1 px convolution gives the same result there at a quarter of the work.
    """

    def __init__(
        self, deep_width: int, width: int, *, norm: str, has_skip: bool, gate: nn.Module | None, attention: nn.Module
    ) -> None:
        """Build one level.

        Args:
            deep_width: channels of the map from below.
            width: channels of the skip and of the result.
            norm: one of NORMS.
            has_skip: the encoder has a map at this stride.
            gate: weighs the skip by the map from below, called with both; None joins it as it is.
            attention: applied to the result; ``nn.Identity()`` for none.
        """
        super().__init__()
        self.reduce = ConvBlock(deep_width, width, norm=norm, kernel_px=1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.gate = gate
        self.cat = Cat() if has_skip else None
        self.convolve = ConvBlock(2 * width if has_skip else width, width, norm=norm)
        self.attention = attention

    def forward(self, deep: Tensor, skip: Tensor | None) -> Tensor:
        """(B, width, 2H, 2W) from (B, deep_width, H, W) and the skip (B, width, 2H, 2W) or None."""
        joined = self.up(self.reduce(deep))
        if self.cat is not None:
            joined = self.cat(joined, skip if self.gate is None else self.gate(skip, joined))
        return self.attention(self.convolve(joined))
