"""How much a teacher's word counts in each epoch."""

from __future__ import annotations

import math

from cellvision.errors import check_choice

SCHEDULES = ("constant", "linear_to_zero", "linear_from_zero", "cosine_to_zero", "cosine_from_zero")


def compute_share(schedule: str, epoch: int, epochs: int) -> float:
    """Share of the whole weight in an epoch, above 0 and up to 1; no epoch is without a teacher.

    Args:
        schedule: one of SCHEDULES.
        epoch: from 0, of those taught.
        epochs: how many there are.

    Raises:
        ConfigError: the schedule is unknown.

    Example:
        >>> [compute_share("linear_to_zero", epoch, 4) for epoch in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [round(compute_share("cosine_from_zero", epoch, 4), 3) for epoch in range(4)]
        [0.146, 0.5, 0.854, 1.0]
    """
    check_choice("compress.distill.schedule", schedule, SCHEDULES)
    shape, _, direction = schedule.partition("_")
    if shape == "constant":
        return 1.0
    left = (epochs - epoch if direction == "to_zero" else epoch + 1) / epochs
    return left if shape == "linear" else (1 - math.cos(math.pi * left)) / 2
