"""The score from which predictions should count: chosen on fields with truth, then fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellvision.errors import DataError, ShapeError, check_choice, explain
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import Overlaps, compute_overlaps, join_overlaps
from cellvision.metrics.instances.scores import IOUS, choose_counted, find_pairs

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
    compute = _compute_aps if objective == "ap_dsb_50" else _compute_kaggle_maps
    candidates, values = compute(chosen)
    best = int(values.argmax())
    return ScoreThreshold(threshold=float(candidates[best]), objective=objective, value=float(values[best]))


def _compute_aps(chosen: Overlaps) -> tuple[np.ndarray, np.ndarray]:
    """(S,) candidates, falling, and (S,) TP / (TP + FP + FN) at each."""
    score = chosen.score
    of_found = score[chosen.pred[find_pairs(chosen, IOUS[0])]]
    candidates = _list_candidates(score, of_found)
    preds, found = (s.size - np.searchsorted(np.sort(s), candidates, "left") for s in (score, of_found))
    return candidates, found / (preds + len(chosen.ignored) - found)


def _compute_kaggle_maps(chosen: Overlaps) -> tuple[np.ndarray, np.ndarray]:
    """(S,) candidates, falling, and (S,) the score at each, over the fields that have cells there."""
    found = [chosen.pred[find_pairs(chosen, least, exceed=True)] for least in IOUS]
    candidates = _list_candidates(chosen.score, chosen.score[np.concatenate(found)])
    if candidates.size > _MOST_CANDIDATES:  # each is counted field by field
        candidates = candidates[np.linspace(0, candidates.size - 1, _MOST_CANDIDATES).round().astype(np.int64)]
    truths = np.bincount(chosen.true_field, minlength=chosen.fields)[:, None]
    cells = _count_from(chosen, np.arange(len(chosen.score)), candidates) + truths
    total = np.zeros(candidates.size)
    for pred in found:
        hits = _count_from(chosen, pred, candidates)
        total += (hits / np.maximum(cells - hits, 1)).sum(axis=0)
    return candidates, total / (len(IOUS) * np.maximum((cells > 0).sum(axis=0), 1))


def _list_candidates(score: np.ndarray, of_found: np.ndarray) -> np.ndarray:
    """(S,) the scores, falling, among which the best threshold is.

    Those of predictions that find a cell: to let in others as well makes no objective larger. And the largest of all,
    which is the answer where nothing is found.
    """
    return np.unique(np.append(of_found, score.max()))[::-1]


def _count_from(chosen: Overlaps, cells: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(F, S) how many of the predicted cells each field has from each score of the falling ``candidates`` up."""
    place = candidates.size - np.searchsorted(candidates[::-1], chosen.score[cells], "right")
    counts = np.zeros((chosen.fields, candidates.size + 1), np.int64)
    np.add.at(counts, (chosen.pred_field[cells], place), 1)
    return np.cumsum(counts, axis=1)[:, :-1]
