"""How many of the counted cells live, and how far that share can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from cellvision.errors import ConfigError, DataError, explain


@dataclass(frozen=True, kw_only=True)
class Viability:
    """Counts of one field (or of several pooled) with the share of live cells.

    Attributes:
        live, dead: number of cells.
        viability: live / (live + dead) in 0..1, or None ("undefined") where no cell was counted.
        low, high: ends of the interval in 0..1, or None where viability is None.
        confidence: nominal coverage of the interval, in (0, 1).
    """

    live: int
    dead: int
    viability: float | None
    low: float | None
    high: float | None
    confidence: float


def compute_viability(live: int, dead: int, *, confidence: float = 0.95) -> Viability:
    """Share of live cells with its Wilson score interval (Wilson 1927).

    The interval answers "what would other fields of this well show?": it covers the chance of having counted these
    cells and no others, not the mistakes of the net. Wilson, because the textbook p ± z·sqrt(p(1-p)/n) has zero width
    where all cells live or all are dead, which is the usual case in a control well.

    Args:
        live: number of live cells, 0 or more.
        dead: number of dead cells, 0 or more.
        confidence: nominal coverage of the interval, in (0, 1).

    Raises:
        DataError: a count is negative.
        ConfigError: confidence is outside (0, 1).

    Example:
        >>> found = compute_viability(18, 2)
        >>> round(found.viability, 2), round(found.low, 2), round(found.high, 2)
        (0.9, 0.7, 0.97)
        >>> compute_viability(0, 0).viability is None
        True
    """
    check_confidence(confidence)
    if live < 0 or dead < 0:
        raise DataError(
            explain(got=f"{live} live and {dead} dead cells", need="counts from 0 up", hint="count the cells again")
        )
    cells = live + dead
    if cells == 0:
        return Viability(live=0, dead=0, viability=None, low=None, high=None, confidence=confidence)
    low, high = _compute_wilson(live, cells, confidence)
    return Viability(live=live, dead=dead, viability=live / cells, low=low, high=high, confidence=confidence)


def check_confidence(confidence: float) -> None:
    """Raise ConfigError unless ``confidence`` lies strictly between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ConfigError(explain(got=f"confidence={confidence}", need="one between 0 and 1", hint="confidence=0.95"))


def _compute_wilson(live: int, cells: int, confidence: float) -> tuple[float, float]:
    # The lower tail, because (1 + confidence) / 2 can round to 1, where inv_cdf has no value.
    z = -NormalDist().inv_cdf((1.0 - confidence) / 2.0)
    share = live / cells
    weight = 1.0 + z * z / cells
    centre = (share + z * z / (2 * cells)) / weight
    half = z / weight * math.sqrt(share * (1.0 - share) / cells + z * z / (4 * cells * cells))
    # The ends are exactly 0 and 1 there; rounding would put the observed share outside its own interval.
    low = 0.0 if live == 0 else max(0.0, centre - half)
    high = 1.0 if live == cells else min(1.0, centre + half)
    return low, high
