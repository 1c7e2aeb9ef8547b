"""Parts of a run with a learning rate and a best net of their own: training, then each step of compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BASE = "base"
"""The phase before any step of compression."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some epochs of a run.

    Attributes:
        name: what its best checkpoint is called.
        epochs: how many, 1 or more.
        lr: share of the peak learning rate at which its schedule begins.
    """

    name: str
    epochs: int
    lr: float = 1.0


def find_phase(phases: Sequence[Phase], epoch: int) -> tuple[Phase, int]:
    """The phase in which an epoch of the run lies, and the epoch's number in it, both from 0.

    Example:
        >>> phases = [Phase(name="base", epochs=2), Phase(name="prune", epochs=3)]
        >>> find_phase(phases, 3)
        (Phase(name='prune', epochs=3, lr=1.0), 1)
    """
    for phase in phases[:-1]:
        if epoch < phase.epochs:
            return phase, epoch
        epoch -= phase.epochs
    return phases[-1], epoch
