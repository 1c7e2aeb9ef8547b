"""Every owner with each of what it owns, as flat tensors of bounded size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cellvision.ops.boxes import PAIRS_AT_ONCE


def list_pairs(counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of (owners, numbers): every owner i with the numbers 0..counts[i]-1.

    An owner's numbers are never divided, so that a chunk holds about PAIRS_AT_ONCE pairs plus those of one owner.

    Args:
        counts: (N,) int64 >= 0.

    Example:
        >>> [(owners.tolist(), numbers.tolist()) for owners, numbers in list_pairs(torch.tensor([2, 0, 3]))]
        [([0, 0, 2, 2, 2], [0, 1, 0, 1, 2])]
    """
    chunks = counts.cumsum(0) // PAIRS_AT_ONCE
    for chunk in range(int(chunks[-1]) + 1 if len(chunks) else 0):
        some = (chunks == chunk).nonzero().squeeze(1)
        owners = some.repeat_interleave(counts[some])
        before = counts[some].cumsum(0) - counts[some]
        yield owners, torch.arange(len(owners), device=counts.device) - before.repeat_interleave(counts[some])
