"""How well the share of live cells is told, field by field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellvision.metrics.semantic import drop_undefined
from cellvision.runtime.viability import Viability, compute_viability


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


def _is_covered(field: FieldViability) -> bool:
    true, found = field.true.viability, field.predicted
    return true is not None and found.low is not None and found.high is not None and found.low <= true <= found.high
