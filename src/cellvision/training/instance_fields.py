"""What was found in a field in the form that instance scores compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cellvision.bundle import Splitting
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.painted_field import paint_field
from cellvision.metrics.instances.score_threshold import ScoreThreshold, fit_score_threshold
from cellvision.runtime.cells import choose_classes
from cellvision.runtime.detections.cells import normalise_scores
from cellvision.runtime.detections.found import Detections

LEAST_SCORE = 1e-6
"""A chosen threshold is at least this and at most one minus this."""


def choose_cell_classes(detections: Detections, classes: tuple[str, ...], *, live_threshold: float) -> np.ndarray:
    """(D,) int64 classes that detections of live and dead cells get as cells: live where P(live) reaches a threshold.

    Args:
        detections: of the classes live and dead.
        classes: background first.
        live_threshold: in 0..1.
    """
    probabilities = normalise_scores(detections.class_scores, detections.class_id)
    return choose_classes(probabilities, classes, live_threshold)


def fit_to_separate(
    found: Sequence[InstanceField], truths: Sequence[InstanceField], splitting: Splitting
) -> ScoreThreshold | None:
    """The score from which separate cells, painted as they are delivered, agree best with the truth.

    None where there is nothing to learn: nothing was found, or nothing is true.

    Args:
        found: from `InstanceField.from_detections`, one per field.
        truths: of the same fields in the same order.
        splitting: min_visible and min_area_px are looked at.
    """
    if not any(map(len, found)) or all(truth.ignored.all() for truth in truths):
        return None
    visible, area_px = splitting.min_visible, splitting.min_area_px
    painted = [paint_field(field, min_visible=visible, min_area_px=area_px) for field in found]
    return fit_score_threshold(painted, truths) if any(map(len, painted)) else None


def limit_score(score: float) -> float:
    """The score moved into the open interval 0..1, in which thresholds lie."""
    return min(max(score, LEAST_SCORE), 1 - LEAST_SCORE)
