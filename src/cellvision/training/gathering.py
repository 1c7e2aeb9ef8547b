"""What each process of a distributed run has for itself, brought together or made alike."""

from __future__ import annotations

from typing import Any

from torch import distributed, nn


def gather(value: Any) -> list[Any]:
    """The values of all processes in the order of their ranks; every process must take part.

    Args:
        value: anything that can be pickled.

    Example:
        >>> gather({"field": 3})
        [{'field': 3}]
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers: statistics that each took from its own batches.

    DistributedDataParallel does so before each training batch, and not before a validation. Every process must take
    part; one alone keeps what it has.
    """
    if distributed.is_available() and distributed.is_initialized():
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)
