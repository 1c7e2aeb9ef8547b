"""Scores of cells as a biologist counts them: one threshold on the scores, then found or not.

The same letters mean different things in this field. Here "ap_dsb" is TP / (TP + FP + FN) at one overlap, as in the
2018 Data Science Bowl and in StarDist; COCO's average precision is in `coco_ap`.

Rules that hold for all: predictions count from ``score_threshold`` up, whatever their class. Where two predictions
reach the same true cell the surer has it. True cells that are ignored count nowhere, nor does a prediction without a
true cell that has at least half of its pixels in ignored ones. Undefined scores are NaN here and absent in `to_dict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cellvision.errors import ConfigError, explain
from cellvision.metrics.instances.assignment import assign_in_order
from cellvision.metrics.instances.overlaps import Overlaps
from cellvision.metrics.semantic import drop_undefined
from cellvision.runtime.pictures.cell_errors import MOSTLY, SMALLEST_PIECE
from cellvision.types import IGNORE

IOUS = np.arange(50, 100, 5) / 100
TOUCH = 0.1
"""Smallest intersection over union at which a cell counts as found inexactly, and not as missed."""

_SPLIT, _MISS, _FALSE = 5.0, 10.0, 1.0
"""What it costs in DET to split a node in two, to add a missing one and to remove a false one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceScores:
    """Scores over all fields, in 0..1, and counts.

    Attributes:
        precision, recall, f1: of finding cells at an IoU of at least 0.5.
        ap_dsb: (10,) TP / (TP + FP + FN) at an IoU of at least .50, .55 .. .95, from counts summed over fields.
        kaggle_map: mean over the fields that have cells of the mean of TP / (TP + FP + FN) over the same ten overlaps,
            where an overlap must be exceeded and not only reached, as the rules of the competition say.
        aji: mean over those fields of the aggregated Jaccard index (Kumar et al. 2017): pixels shared with the best
            prediction of each true cell, over the pixels of both and of all predictions that are nobody's best.
        pq, sq, rq: panoptic quality (Kirillov et al. 2019) and its factors, mean overlap and F1 of the pairs that
            overlap by more than 0.5, from counts summed over fields.
        seg: of the Cell Tracking Challenge: mean over true cells of the Jaccard index with the prediction that covers
            more than half of the cell, or 0.
        det: of the same: 1 - min(cost, 10 G) / (10 G) for G true cells. A prediction stands for each true cell of
            which it covers more than half; the cost is 10 for each true cell that none stands for, 1 for each
            prediction that stands for none, and 5 for each further cell that a prediction stands for.
        pred_count, true_count: cells that were scored.
        found, missed, false, merged, split, inexact: number of cells by what became of them, see ``CellErrors``:
            predictions for false and merged, true cells for the others. Predictions may overlap here: a cell found
            twice is found once and not split, and the second is false.
    """

    precision: float
    recall: float
    f1: float
    ap_dsb: np.ndarray
    kaggle_map: float
    aji: float
    pq: float
    sq: float
    rq: float
    seg: float
    det: float
    pred_count: int
    true_count: int
    found: int
    missed: int
    false: int
    merged: int
    split: int
    inexact: int

    def to_dict(self) -> dict[str, float]:
        """Flat "instance/ap_dsb_50", "instance/kaggle_map", ...; undefined ones are absent, so no value is NaN."""
        named = {f"ap_dsb_{round(100 * iou)}": float(ap) for iou, ap in zip(IOUS, self.ap_dsb, strict=True)}
        named |= {name: float(value) for name, value in vars(self).items() if name != "ap_dsb"}
        return drop_undefined({f"instance/{name}": value for name, value in named.items()})


def compute_instance_scores(overlaps: Overlaps, *, score_threshold: float) -> InstanceScores:
    """Scores over all fields, classes left aside.

    Args:
        overlaps: from `compute_overlaps`, of many fields through `join_overlaps`.
        score_threshold: smallest score of a prediction that counts.

    Raises:
        ConfigError: the threshold is NaN.

    Example:
        >>> from cellvision.metrics.instances.field import InstanceField
        >>> from cellvision.metrics.instances.overlaps import compute_overlaps
        >>> image, one = np.array([[1, 1, 0, 2, 2]]), np.ones(2, int)
        >>> truth = InstanceField.from_label_image(image, one)
        >>> pred = InstanceField.from_label_image(np.array([[1, 1, 0, 0, 2]]), one, score=np.array([0.9, 0.8]))
        >>> scores = compute_instance_scores(compute_overlaps(pred, truth), score_threshold=0.5)
        >>> scores.f1, round(scores.kaggle_map, 3), scores.seg
        (1.0, 0.333, 0.5)
    """
    chosen = choose_counted(overlaps, score_threshold=score_threshold)
    pred_count, true_count = len(chosen.score), len(chosen.ignored)
    reached = np.stack([_mark_found(chosen, least) for least in IOUS])
    found = reached.sum(axis=1)
    f1_parts = (found[0], pred_count), (found[0], true_count), (2 * found[0], pred_count + true_count)
    precision, recall, f1 = (_divide(*parts) for parts in f1_parts)
    return InstanceScores(
        precision=precision,
        recall=recall,
        f1=f1,
        ap_dsb=np.array([_divide(hits, pred_count + true_count - hits) for hits in found]),
        kaggle_map=_compute_kaggle_map(chosen),
        aji=_compute_aji(chosen),
        pred_count=pred_count,
        true_count=true_count,
        **_compute_panoptic(chosen),
        **_compute_tracking_scores(chosen),
        **_count_errors(chosen),
    )


def compute_panoptic_per_class(
    overlaps: Overlaps, classes: tuple[str, ...], *, score_threshold: float
) -> dict[str, float]:
    """With more than one cell class the panoptic quality of each, "instance/pq_<class>", and their mean "instance/mpq".

    A cell of the right outline and the wrong class is missed in one class and false in the other.

    Args:
        overlaps: of all fields.
        classes: names, background first.
        score_threshold: smallest score of a prediction that counts.
    """
    if len(classes) <= 2:
        return {}
    parts = (select_class(overlaps, k) for k in range(1, len(classes)))
    per_class = [compute_instance_scores(part, score_threshold=score_threshold).pq for part in parts]
    named = {f"instance/pq_{name}": pq for name, pq in zip(classes[1:], per_class, strict=True)}
    defined = [pq for pq in per_class if not np.isnan(pq)]
    return drop_undefined(named | {"instance/mpq": float(np.mean(defined)) if defined else float("nan")})


def select_class(overlaps: Overlaps, class_id: int) -> Overlaps:
    """The cells of one class, and the ignored ones that stand for any."""
    of_class = (overlaps.true_class == class_id) | (overlaps.true_class == IGNORE)
    return overlaps.select(np.flatnonzero(overlaps.pred_class == class_id), np.flatnonzero(of_class))


def choose_counted(overlaps: Overlaps, *, score_threshold: float) -> Overlaps:
    """The cells that count, the predicted ones by field and falling score, the pairs by predicted cell and overlap."""
    if np.isnan(score_threshold):
        raise ConfigError(explain(got="score_threshold=nan", need="a number", hint="0.5"))
    kept = np.flatnonzero(overlaps.score >= score_threshold)
    order = kept[np.lexsort((-overlaps.score[kept], overlaps.pred_field[kept]))]
    chosen = _sort_pairs(overlaps.select(order, np.arange(len(overlaps.ignored))))
    if not chosen.ignored.any():
        return chosen
    of_ignored = np.where(chosen.ignored[chosen.true], chosen.shared, 0)
    on_ignored = np.bincount(chosen.pred, weights=of_ignored, minlength=len(chosen.score))
    known = chosen.select(np.arange(len(order)), np.flatnonzero(~chosen.ignored))
    excused = ~_mark_found(known, IOUS[0]) & (on_ignored > 0) & (2 * on_ignored >= known.pred_area)
    return known.select(np.flatnonzero(~excused), np.arange(len(known.ignored)))


def _sort_pairs(overlaps: Overlaps) -> Overlaps:
    order = np.lexsort((-overlaps.compute_mask_iou(), overlaps.pred))
    columns = vars(overlaps) | {name: getattr(overlaps, name)[order] for name in ("pred", "true", "shared")}
    return Overlaps(**columns)


def find_pairs(chosen: Overlaps, least: float, *, exceed: bool = False) -> np.ndarray:
    """(n,) positions of the pairs that are found at the overlap ``least``; chosen by `choose_counted`."""
    iou = chosen.compute_mask_iou()
    near = np.flatnonzero(iou > least if exceed else iou >= least)
    return near[assign_in_order(chosen.pred[near], chosen.true[near])]


def _mark_found(chosen: Overlaps, least: float, *, exceed: bool = False) -> np.ndarray:
    """(D,) bool, the predictions that find a true cell."""
    marked = np.zeros(len(chosen.score), bool)
    marked[chosen.pred[find_pairs(chosen, least, exceed=exceed)]] = True
    return marked


def _count_cells(chosen: Overlaps) -> tuple[np.ndarray, np.ndarray]:
    """(F,) number of predicted cells and of true cells of each field."""
    count = chosen.fields
    return np.bincount(chosen.pred_field, minlength=count), np.bincount(chosen.true_field, minlength=count)


def _compute_kaggle_map(chosen: Overlaps) -> float:
    preds, truths = _count_cells(chosen)
    cells = preds + truths
    ratios = []
    for least in IOUS:
        found = np.bincount(chosen.pred_field[_mark_found(chosen, least, exceed=True)], minlength=chosen.fields)
        ratios.append(found[cells > 0] / (cells - found)[cells > 0])
    return float(np.mean(ratios)) if (cells > 0).any() else float("nan")


def _compute_aji(chosen: Overlaps) -> float:
    best = _find_best(chosen, np.arange(chosen.pred.size))
    pred, true, shared = chosen.pred[best], chosen.true[best], chosen.shared[best]
    alone_pred, alone_true = np.ones(len(chosen.score), bool), np.ones(len(chosen.ignored), bool)
    alone_pred[pred] = False
    alone_true[true] = False
    whole = np.zeros(chosen.fields)
    for field, area in (
        (chosen.true_field[true], chosen.pred_area[pred] + chosen.true_area[true] - shared),
        (chosen.true_field[alone_true], chosen.true_area[alone_true]),
        (chosen.pred_field[alone_pred], chosen.pred_area[alone_pred]),
    ):
        whole += np.bincount(field, weights=area, minlength=chosen.fields)
    both = np.bincount(chosen.true_field[true], weights=shared, minlength=chosen.fields)
    return float(np.mean(both[whole > 0] / whole[whole > 0])) if (whole > 0).any() else float("nan")


def _find_best(chosen: Overlaps, pairs: np.ndarray) -> np.ndarray:
    """(n,) of the positions ``pairs`` the one with the largest overlap for each true cell; of equals the surer."""
    order = pairs[np.lexsort((chosen.pred[pairs], -chosen.compute_mask_iou()[pairs], chosen.true[pairs]))]
    return order[np.diff(chosen.true[order], prepend=-1) != 0]


def _compute_panoptic(chosen: Overlaps) -> dict[str, Any]:
    pairs = find_pairs(chosen, 0.5, exceed=True)
    total = float(chosen.compute_mask_iou()[pairs].sum())
    cells = (len(chosen.score) + len(chosen.ignored)) / 2
    return {"pq": _divide(total, cells), "sq": _divide(total, pairs.size), "rq": _divide(pairs.size, cells)}


def _compute_tracking_scores(chosen: Overlaps) -> dict[str, Any]:
    truths = len(chosen.ignored)
    best = _find_best(chosen, np.flatnonzero(2 * chosen.shared > chosen.true_area[chosen.true]))
    stands_for = np.bincount(chosen.pred[best], minlength=len(chosen.score))
    cost = _SPLIT * np.maximum(stands_for - 1, 0).sum() + _FALSE * np.count_nonzero(stands_for == 0)
    cost += _MISS * (truths - best.size)
    seg = _divide(float(chosen.compute_mask_iou()[best].sum()), truths)
    return {"seg": seg, "det": 1.0 - _divide(min(cost, _MISS * truths), _MISS * truths)}


def _count_errors(chosen: Overlaps) -> dict[str, Any]:
    """The kinds of ``CellErrors``, in its order, over all fields at once."""
    pred, true, shared, iou = chosen.pred, chosen.true, chosen.shared, chosen.compute_mask_iou()
    free_pred, free_true = np.ones(len(chosen.score), bool), np.ones(len(chosen.ignored), bool)

    def take(pairs: np.ndarray) -> None:
        free_pred[pred[pairs]] = False
        free_true[true[pairs]] = False

    inside = shared > MOSTLY * chosen.true_area[true]
    merged = np.bincount(pred[inside], minlength=free_pred.size) > 1
    take(inside & merged[pred])
    piece = free_pred[pred] & free_true[true] & (shared >= SMALLEST_PIECE * chosen.true_area[true])
    piece &= shared > MOSTLY * chosen.pred_area[pred]
    split = np.bincount(true[piece], minlength=free_true.size) > 1
    # Predictions that together have more pixels than the cell are the same cell found twice, and no pieces of it.
    split &= np.bincount(true[piece], weights=shared[piece], minlength=free_true.size) <= chosen.true_area
    take(piece & split[true])
    near = np.flatnonzero(free_pred[pred] & free_true[true] & (iou >= IOUS[0]))
    found = near[assign_in_order(pred[near], true[near])]
    take(found)
    near = np.flatnonzero(free_pred[pred] & free_true[true] & (iou >= TOUCH))
    inexact = _find_best(chosen, near)
    take(inexact)
    return {
        "found": found.size,
        "missed": int(free_true.sum()),
        "false": int(free_pred.sum()),
        "merged": int(merged.sum()),
        "split": int(split.sum()),
        "inexact": inexact.size,
    }


def _divide(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")
