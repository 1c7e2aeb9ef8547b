"""Ranges of a net's activations from real batches, before it has learned anything of rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cellvision.models.base import SegNet, keep_modes
from cellvision.models.structure.fake_quant import FakeQuant, find_fake_quants, set_phase
from cellvision.types import Batch

METHODS = ("minmax", "percentile")
BINS = 4096
"""Of the histogram that a percentile is taken from: 1/BINS of the largest value is how exact it is."""

See = Callable[[int, Tensor], None]


@torch.no_grad()
def calibrate(net: SegNet, batches: Sequence[Batch], *, method: str = "minmax", percentile: float = 99.99) -> None:
    """Set the range of every rounded activation, in every process alike.

    Args:
        net: after ``set_fake_quant``; ranges it has are forgotten, all else stays as it is.
        batches: on the net's device; in each process as many.
        method: one of METHODS: up to the largest value of all batches, or without rare extremes, for finer steps.
        percentile: share of the values kept, in percent, in (50, 100]; for "percentile".
    """
    quants = list(find_fake_quants(net))
    largest = _find_largest(net, quants, batches)
    if method == "percentile":
        largest = _cut(net, quants, batches, largest, percentile / 100)
    for quant, found in zip(quants, largest, strict=True):
        quant.bound.copy_(found)
        if quant.growth is not None:
            quant.growth.zero_()


def _find_largest(net: SegNet, quants: Sequence[FakeQuant], batches: Sequence[Batch]) -> Tensor:
    """(activations,) float32: the largest absolute value of each; 0 where there was none."""
    largest = torch.zeros(len(quants), device=batches[0].images.device)

    def widen(at: int, sizes: Tensor) -> None:
        largest[at] = torch.maximum(largest[at], sizes.amax())

    _show(net, quants, batches, widen)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def _cut(net: SegNet, quants: Sequence[FakeQuant], batches: Sequence[Batch], largest: Tensor, share: float) -> Tensor:
    """(activations,) float32: the smallest ranges that hold a share of the values, to a bin."""
    counts = torch.zeros(len(quants), BINS, dtype=torch.int64, device=largest.device)

    def count(at: int, sizes: Tensor) -> None:
        places = (sizes.flatten() * (BINS / largest[at].clamp_min(1e-30))).int().clamp_(max=BINS - 1)
        counts[at] += torch.bincount(places, minlength=BINS)

    _show(net, quants, batches, count)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    kept = counts.cumsum(1).double() / counts.sum(1, keepdim=True).clamp_min(1)
    bins = (kept < share - 1e-12).sum(1).clamp_max(BINS - 1) + 1
    return largest * bins / BINS


def _show(net: SegNet, quants: Sequence[FakeQuant], batches: Sequence[Batch], see: See) -> None:
    """Call ``see`` with an activation's number and its absolute values, float32, each time that it is computed."""

    def pass_on(at: int, quant: FakeQuant, given: tuple[Any, ...]) -> None:
        sizes = (given[0].abs() if quant.signed else given[0].clamp_min(0)).float()
        if sizes.numel() and sizes.isfinite().all():  # else no cell in any box, or a batch that the task skips
            see(at, sizes)

    with ExitStack() as stack:
        stack.enter_context(keep_modes(net))
        net.eval()
        set_phase(net, observing=False, rounding=False)
        for at, quant in enumerate(quants):
            stack.callback(quant.register_forward_pre_hook(partial(pass_on, at)).remove)
        for batch in batches:
            net.losses(batch.images, batch.targets)  # masks are those of true cells
    set_phase(net, observing=True, rounding=True)
