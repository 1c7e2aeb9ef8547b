"""Ranges of a net's activations from real batches, before it has learned anything of rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cellvision.models.base import SegNet, keep_modes
from cellvision.models.structure.fake_quant import find_fake_quants, set_phase
from cellvision.types import Batch


@torch.no_grad()
def calibrate(net: SegNet, batches: Sequence[Batch]) -> None:
    """Set the range of every rounded activation to the largest that any batch needs, in every process alike.

    Args:
        net: after ``set_fake_quant``; ranges it has are forgotten, all else stays as it is.
        batches: on the net's device; in each process as many.
    """
    quants = list(find_fake_quants(net))
    largest = [torch.zeros_like(quant.bound) for quant in quants]
    with keep_modes(net):
        net.eval()
        for quant in quants:
            quant.train()
        set_phase(net, observing=True, rounding=False)
        for batch in batches:
            for quant in quants:
                quant.bound.zero_()
            net.losses(batch.images, batch.targets)  # masks are those of true cells
            for quant, before in zip(quants, largest, strict=True):
                torch.maximum(before, quant.bound, out=before)
        for quant, found in zip(quants, largest, strict=True):
            quant.bound.copy_(found)
    set_phase(net, observing=True, rounding=True)
