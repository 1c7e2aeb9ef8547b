"""The score from which predictions should count: chosen on fields with truth, then fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellvision.errors import DataError, ShapeError, check_choice, explain
from cellvision.metrics.instance_field import InstanceField
from cellvision.metrics.instance_scores import IOUS, choose_counted, find_pairs
from cellvision.metrics.overlaps import Overlaps, compute_overlaps, join_overlaps

OBJECTIVES = ("ap_dsb_50", "kaggle_map")
_MOST_CANDIDATES = 256


@dataclass(frozen=True, kw_only=True)
class ScoreThreshold:
    """A threshold and what it reaches on the fields it was chosen on, which is more than it will reach on others.

    Attributes:
        threshold: predictions count from this score up.
        objective: what was made as large as possible.
        value: the objective at the threshold, in 0..1.
    """

    threshold: float
    objective: str
    value: float


def fit_score_threshold(
    preds: Sequence[InstanceField], truths: Sequence[InstanceField], *, objective: str = "ap_dsb_50"
) -> ScoreThreshold:
    """The score threshold that is best on these fields; of equally good ones the highest.

    Args:
        preds: one per field, with scores, low ones included.
        truths: of the same fields in the same order.
        objective: "ap_dsb_50" (the maximum of F1 is at the same place) or "kaggle_map" (asks for exact outlines too);
            see ``InstanceScores``.

    Raises:
        ConfigError: there is no such objective.
        ShapeError: the two lists are not of one length, or a field not of one size.
        DataError: there is no prediction or no true cell to choose by.

    Example:
        >>> truth = InstanceField.from_label_image(np.array([[1, 1, 0, 0]]), np.array([1]))
        >>> score = np.array([0.8, 0.3])
        >>> pred = InstanceField.from_label_image(np.array([[1, 1, 0, 2]]), np.array([1, 1]), score=score)
        >>> fit_score_threshold([pred], [truth]).threshold
        0.8
    """
    if len(preds) != len(truths):
        raise ShapeError(
            explain(
                got=f"predictions of {len(preds)} fields and truth of {len(truths)}",
                need="both of the same fields",
                hint="an empty InstanceField for a field without predictions",
            )
        )
    parts = [compute_overlaps(pred, truth) for pred, truth in zip(preds, truths, strict=True)]
    return fit_to_overlaps(join_overlaps(parts), objective=objective)


def fit_to_overlaps(overlaps: Overlaps, *, objective: str = "ap_dsb_50") -> ScoreThreshold:
    """The same as `fit_score_threshold` from overlaps that are there already."""
    check_choice("objective", objective, OBJECTIVES)
    # Going by falling score, who finds what does not depend on those that come after: one pass serves all thresholds.
    chosen = choose_counted(overlaps, score_threshold=-np.inf)
    if not len(chosen.score) or not len(chosen.ignored):
        raise DataError(
            explain(
                got=f"{len(chosen.score)} predicted and {len(chosen.ignored)} true cells",
                need="some of both to choose a score threshold",
                hint="give a threshold instead",
            )
        )
    candidates = np.unique(chosen.score)
    if candidates.size > _MOST_CANDIDATES:
        candidates = candidates[np.linspace(0, candidates.size - 1, _MOST_CANDIDATES).round().astype(np.int64)]
    candidates = candidates[::-1]
    truths = np.bincount(chosen.true_field, minlength=chosen.fields)[:, None]
    preds = _count_from(chosen, np.arange(len(chosen.score)), candidates)
    if objective == "ap_dsb_50":
        found = _count_from(chosen, chosen.pred[find_pairs(chosen, IOUS[0])], candidates).sum(axis=0)
        values = found / (preds.sum(axis=0) + truths.sum() - found)
    else:
        values = _compute_kaggle_maps(chosen, preds, truths, candidates)
    best = int(values.argmax())
    return ScoreThreshold(threshold=float(candidates[best]), objective=objective, value=float(values[best]))


def _count_from(chosen: Overlaps, cells: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(F, S) how many of the predicted cells each field has from each score of the falling ``candidates`` up."""
    place = candidates.size - np.searchsorted(candidates[::-1], chosen.score[cells], "right")
    counts = np.zeros((chosen.fields, candidates.size + 1), np.int64)
    np.add.at(counts, (chosen.pred_field[cells], place), 1)
    return np.cumsum(counts, axis=1)[:, :-1]


def _compute_kaggle_maps(chosen: Overlaps, preds: np.ndarray, truths: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(S,) the score at each candidate, over the fields that have cells there."""
    cells = preds + truths
    total = np.zeros(candidates.size)
    for least in IOUS:
        found = _count_from(chosen, chosen.pred[find_pairs(chosen, least, exceed=True)], candidates)
        total += (found / np.maximum(cells - found, 1)).sum(axis=0)
    return total / (len(IOUS) * np.maximum((cells > 0).sum(axis=0), 1))
