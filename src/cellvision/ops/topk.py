"""The best of many numbers, in a graph that TensorRT can build."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_K = 3840
"""Of a TopK in TensorRT and TensorRT-RTX."""


def find_best(values: Tensor, count: int, *, at_once: int = LARGEST_K) -> tuple[Tensor, Tensor]:
    """The ``count`` largest values of each row, best first, and their places: ``values.topk(count)``.

    No more than ``at_once`` are looked for at a time; what has been found is then out of the way.

    Args:
        values: (B, N) float32, N >= ``count``.
        count: >= 1.
        at_once: >= 1.

    Returns:
        (B, count) float32 and (B, count) int64.

    Example:
        >>> find_best(torch.tensor([[1.0, 7.0, 3.0, 5.0]]), 3, at_once=2)[1].tolist()
        [[1, 3, 2]]
    """
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, count, at_once):
        if found:
            values = values.scatter(1, found[-1][1], -torch.inf)
        best, places = values.topk(min(at_once, count - start))
        found.append((best, places))
    return torch.cat([best for best, _ in found], dim=1), torch.cat([places for _, places in found], dim=1)
