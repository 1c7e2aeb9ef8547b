"""How well the share of live cells is told, field by field, and intervals that need no formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellvision.errors import ConfigError, DataError, check_choice, explain
from cellvision.metrics.semantic import drop_undefined
from cellvision.runtime.viability import Viability, check_confidence, compute_viability


@dataclass(frozen=True, kw_only=True)
class FieldViability:
    """True and predicted viability of one field.

    Attributes:
        true, predicted: counts, shares and Wilson intervals.
        error_pp: predicted - true in percentage points, or None where either is undefined (no cells).
    """

    true: Viability
    predicted: Viability
    error_pp: float | None


@dataclass(frozen=True, kw_only=True)
class ViabilityScores:
    """Viability errors over fields; NaN where no field has both a true and a predicted viability.

    Attributes:
        fields: number of fields that count.
        undefined: fields with true cells in which no cell was predicted. They have no error to average, so read
            ``error_pp`` together with this number.
        error_pp: mean absolute error in percentage points, every field weighing the same.
        bias_pp: mean signed error in percentage points; above 0 = too many cells called live.
        coverage: share of fields whose true viability lies in the predicted interval. Not expected to equal the
            confidence: prediction and truth count the same cells, so only mistakes move the truth out of it.
    """

    fields: int
    undefined: int
    error_pp: float
    bias_pp: float
    coverage: float

    def to_dict(self) -> dict[str, float]:
        """Flat "field/viability_..." scores for a log or a JSON file; undefined ones are absent."""
        return drop_undefined(
            {
                "field/viability_fields": float(self.fields),
                "field/viability_undefined": float(self.undefined),
                "field/viability_error_pp": self.error_pp,
                "field/viability_bias_pp": self.bias_pp,
                "field/viability_coverage": self.coverage,
            }
        )


def compute_field_viability(
    *, true_live: int, true_dead: int, pred_live: int, pred_dead: int, confidence: float = 0.95
) -> FieldViability:
    """True and predicted viability of one field from its cell counts.

    Example:
        >>> compute_field_viability(true_live=9, true_dead=1, pred_live=8, pred_dead=2).error_pp
        -10.0
    """
    true = compute_viability(true_live, true_dead, confidence=confidence)
    predicted = compute_viability(pred_live, pred_dead, confidence=confidence)
    if true.viability is None or predicted.viability is None:
        return FieldViability(true=true, predicted=predicted, error_pp=None)
    # Rounded far below meaning, so that 0.8 - 0.9 reads -10.0 in a table and not -9.999999999999998.
    error_pp = round(100.0 * (predicted.viability - true.viability), 9)
    return FieldViability(true=true, predicted=predicted, error_pp=error_pp)


def compute_viability_scores(fields: Sequence[FieldViability]) -> ViabilityScores:
    """Error, bias and interval coverage over fields.

    Example:
        >>> good = compute_field_viability(true_live=9, true_dead=1, pred_live=9, pred_dead=1)
        >>> poor = compute_field_viability(true_live=9, true_dead=1, pred_live=5, pred_dead=5)
        >>> scores = compute_viability_scores([good, poor])
        >>> scores.error_pp, scores.bias_pp, scores.coverage
        (20.0, -20.0, 0.5)
    """
    errors = np.array([field.error_pp for field in fields if field.error_pp is not None], np.float64)
    undefined = sum(field.true.viability is not None and field.predicted.viability is None for field in fields)
    if errors.size == 0:
        nan = float("nan")
        return ViabilityScores(fields=0, undefined=undefined, error_pp=nan, bias_pp=nan, coverage=nan)
    return ViabilityScores(
        fields=errors.size,
        undefined=undefined,
        error_pp=float(np.abs(errors).mean()),
        bias_pp=float(errors.mean()),
        coverage=sum(map(_is_covered, fields)) / errors.size,
    )


def compute_bootstrap_viability(
    live: np.ndarray,
    dead: np.ndarray,
    *,
    over: str = "fields",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Viability:
    """Pooled viability of several fields with a percentile bootstrap interval.

    Cells of one field resemble each other (one focus, one pipetting), so a Wilson interval over pooled cells is too
    narrow; drawing whole fields keeps that likeness. Drawing cells reproduces the Wilson assumption, and has zero width
    where all cells are alike. Draws without any cell are skipped.

    Args:
        live: (F,) number of live cells of each field.
        dead: (F,) number of dead cells of each field.
        over: what is drawn with replacement: "fields" or "cells".
        confidence: nominal coverage of the interval, in (0, 1).
        resamples: number of draws, 100 or more.
        seed: same seed, same interval.

    Raises:
        ConfigError: ``over``, ``confidence`` or ``resamples`` is not valid.
        DataError: the counts are not two lists of equal length, or negative.

    Example:
        >>> found = compute_bootstrap_viability(np.array([9, 10, 5]), np.array([1, 0, 5]))
        >>> found.viability, found.low, found.high
        (0.8, 0.5, 1.0)
    """
    check_choice("bootstrap over", over, ("cells", "fields"))
    check_confidence(confidence)
    if resamples < 100:
        raise ConfigError(explain(got=f"resamples={resamples}", need="100 or more", hint="resamples=2000"))
    live, dead = np.atleast_1d(live).astype(np.int64), np.atleast_1d(dead).astype(np.int64)
    if live.shape != dead.shape or live.ndim != 1 or (live.size and min(live.min(), dead.min()) < 0):
        raise DataError(
            explain(
                got=f"live counts {live.tolist()} and dead counts {dead.tolist()}",
                need="one live and one dead count from 0 up for each field",
                hint="give the fields in the same order",
            )
        )
    pooled = compute_viability(int(live.sum()), int(dead.sum()), confidence=confidence)
    if pooled.viability is None:
        return pooled
    shares = _draw_shares(live, dead, over, resamples, np.random.default_rng(seed))
    low, high = np.quantile(shares, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Viability(
        live=pooled.live,
        dead=pooled.dead,
        viability=pooled.viability,
        low=float(low),
        high=float(high),
        confidence=confidence,
    )


def _draw_shares(
    live: np.ndarray, dead: np.ndarray, over: str, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    if over == "cells":
        cells = int(live.sum() + dead.sum())
        # Drawing n cells with replacement and counting the live ones is a binomial draw.
        return generator.binomial(cells, live.sum() / cells, size=resamples) / cells
    times_drawn = generator.multinomial(live.size, np.full(live.size, 1.0 / live.size), size=resamples)
    drawn_live, drawn_cells = times_drawn @ live, times_drawn @ (live + dead)
    return drawn_live[drawn_cells > 0] / drawn_cells[drawn_cells > 0]


def _is_covered(field: FieldViability) -> bool:
    true, found = field.true.viability, field.predicted
    return true is not None and found.low is not None and found.high is not None and found.low <= true <= found.high
