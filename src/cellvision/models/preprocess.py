"""What happens to raw counts before the first layer, as part of the net so that it is exported with it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.errors import ConfigError, DataError, ShapeError, explain
from cellvision.types import DataStats

WHITE = 255.0
"""The bright end of the images on the scale of ``model.pixel_mean`` and of all published statistics; dark is 0."""


def find_white(stats: DataStats, *, needed_by: str) -> DataStats:
    """The statistics that map what is 0 and 255 on the scale of published means and deviations to 0 and 1.

    Under "percentile" and "fixed" these are the dark and the bright end of the training images; under "none" the
    counts are on that scale as they are.

    Args:
        stats: of the training images.
        needed_by: what refers to that scale, for the text of the error.

    Raises:
        ConfigError: under "zscore", which knows no dark and no bright end.

    Example:
        >>> stats = DataStats(offset=(0.0,), scale=(1.0,), class_pixels=(1, 1), normalization="none")
        >>> find_white(stats, needed_by="model.pixel_mean").scale
        (255.0,)
    """
    if stats.normalization == "zscore":
        need = "the counts that are 0 and 255 to it, which zscore does not tell"
        hint = "data.normalization=fixed"
        raise ConfigError(explain(got=f"data.normalization=zscore with {needed_by}", need=need, hint=hint))
    if stats.normalization == "none":
        return replace(stats, offset=(0.0,) * len(stats.offset), scale=(WHITE,) * len(stats.scale))
    return stats


class Normalize(nn.Module):
    """(image - offset) / scale per channel in float32, with the fixed statistics of the training data.

    Not with the image's own statistics: two tiles of one field would disagree, and a field without dead cells would
    be stretched until its noise looked like dead cells.

    Example:
        >>> normalize = Normalize(1)
        >>> normalize.set_statistics(DataStats(offset=(100.0,), scale=(50.0,), class_pixels=(1, 1)))
        >>> normalize(torch.full((1, 1, 1, 1), 150, dtype=torch.uint8)).item()
        1.0
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        """Start with offset 0 and scale 1 for each of ``channels``."""
        super().__init__()
        self.register_buffer("offset", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float32 of (B, C, H, W) raw counts of any dtype.

        Raises:
            ShapeError: not four dimensions, or another number of channels than the net was made for.
        """
        channels = self.offset.shape[0]
        if images.ndim != 4 or images.shape[1] != channels:
            raise ShapeError(
                explain(
                    got=f"images are of shape {tuple(images.shape)}",
                    need=f"(images, {channels} channels, height, width)",
                    hint=f"pass the {channels} channels that the net was made for, or set model.in_channels",
                )
            )
        return (images.to(torch.float32) - self.offset.view(-1, 1, 1)) / self.scale.view(-1, 1, 1)

    def set_statistics(self, stats: DataStats) -> None:
        """Take over offset and scale; a channel that never varies (scale 0) is only shifted.

        Raises:
            DataError: not one finite offset and one finite scale >= 0 for each channel.
        """
        numbers = (*stats.offset, *stats.scale)
        fits = len(stats.offset) == len(stats.scale) == self.offset.shape[0]
        if not fits or not all(map(math.isfinite, numbers)) or min(stats.scale) < 0:
            raise DataError(
                explain(
                    got=f"statistics of the training data are offset={stats.offset}, scale={stats.scale}",
                    need=f"a finite offset and a finite scale from 0 up for each of {self.offset.shape[0]} channels",
                    hint="look for NaN in the training images",
                )
            )
        self.offset.copy_(torch.tensor(stats.offset))
        self.scale.copy_(torch.tensor([value or 1.0 for value in stats.scale]))


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Images grown on the right and at the bottom until both sides are multiples of ``stride``.

    The last row and column are repeated: zeros would be a dark wall, and mirroring fails on images narrower than
    the margin. Cut results back with ``[..., :H, :W]``.

    Args:
        images: (B, C, H, W) floating point, H and W >= 1.
        stride: >= 1.

    Returns:
        (B, C, H', W'), H' and W' the next multiples of ``stride``.

    Example:
        >>> pad_to_stride(torch.zeros(1, 2, 5, 8), 4).shape
        torch.Size([1, 2, 8, 8])
    """
    height, width = images.shape[-2:]
    # Written as multiples, not as height + rest: the exporter can then see that halving and doubling are exact.
    full_height = (height + stride - 1) // stride * stride
    full_width = (width + stride - 1) // stride * stride
    return F.pad(images, (0, full_width - width, 0, full_height - height), mode="replicate")
