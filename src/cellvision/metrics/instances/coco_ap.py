"""COCO's average precision and recall of masks and boxes, for fields of thousands of cells.

The numbers are those of pycocotools (a test compares them), whose loops over pairs of cells take minutes per field of
3000. The rules that matter, as there:

- In each field and class the ``max_dets`` best scored predictions count; equal scores in the order given.
- In that order each takes the free true cell of its class with the largest overlap, of equal ones the last given.
- Ignored true cells, and in a size range those of another size, are no miss; what finds only such a cell is no error.
  An ignored cell can be found many times, and its overlap is the share of the prediction that lies in it.
- A prediction of another size that finds nothing is no error in that size range.
- Over all fields, equal scores stand in the order of the fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cellvision.errors import ConfigError, check_choice, explain
from cellvision.metrics.instances.assignment import assign_in_order
from cellvision.metrics.instances.overlaps import Overlaps, check_classes, is_same_class

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETS = (100, 500, 2000)
SIZES = ("all", "small", "medium", "large")
AREAS = {
    "coco": ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10)),
    "livecell": ((0.0, 1e10), (0.0, 324.0), (324.0, 961.0), (961.0, 1e10)),
}
"""Smallest and largest area in px of the cells of each of SIZES; a cell on a bound belongs to both sides."""
KINDS = ("mask", "box")


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoAp:
    """Precision and recall over T overlaps (IOUS), R recalls (RECALLS), K-1 classes, A SIZES and M ``max_dets``.

    Attributes:
        kind: "mask" or "box".
        classes: names of the K-1 classes.
        max_dets: ascending.
        precision: (T, R, K-1, A, M) float64 in 0..1: the best precision at that recall or a higher one.
        recall: (T, K-1, A, M) float64 in 0..1. Both are -1 where there is no true cell of that class and size.
    """

    kind: str
    classes: tuple[str, ...]
    max_dets: tuple[int, ...]
    precision: np.ndarray
    recall: np.ndarray

    def to_dict(self) -> dict[str, float]:
        """Flat scores "mask/ap", "mask/ap50", "mask/ap_small", "mask/ar_100", "mask/afnr", ...; undefined are absent.

        "ap", "ap50", "ap75" and the sizes are at the largest of ``max_dets``, "ar_100" is recall at 100, and "afnr"
        the mean over IOUS of the share of true cells that are missed at the largest. With more than one class each has
        "mask/ap_class_<name>" and so on too, and those without are means over the classes that occur.
        """
        named = self._summarise(slice(None))
        if len(self.classes) > 1:
            for k, name in enumerate(self.classes):
                one = self._summarise(slice(k, k + 1))
                named |= {f"{score}_class_{name}": one[score] for score in ("ap", "ap50", "ap75", "ar", "afnr")}
        return {f"{self.kind}/{name}": value for name, value in named.items() if value is not None}

    def to_curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(recall, precision) of each class, at IoU 0.5, all sizes and the largest ``max_dets``, by class name."""
        at_half = self.precision[0, :, :, 0, -1]
        return {name: (RECALLS, at_half[:, k]) for k, name in enumerate(self.classes) if at_half[0, k] >= 0}

    def list_recalls(self) -> dict[str, float]:
        """Mean recall over classes at each overlap, by its text "0.50".."0.95"."""
        values = {f"{iou:.2f}": _average(self.recall[t, :, 0, -1]) for t, iou in enumerate(IOUS)}
        return {name: value for name, value in values.items() if value is not None}

    def list_precisions(self) -> dict[str, float]:
        """Average precision at each overlap, by its text "0.50".."0.95"."""
        values = {f"{iou:.2f}": _average(self.precision[t, :, :, 0, -1]) for t, iou in enumerate(IOUS)}
        return {name: value for name, value in values.items() if value is not None}

    def _summarise(self, classes: slice) -> dict[str, float | None]:
        precision, recall = self.precision[:, :, classes], self.recall[:, classes]
        named = {
            "ap": _average(precision[..., 0, -1]),
            "ap50": _average(precision[0, ..., 0, -1]),
            "ap75": _average(precision[5, ..., 0, -1]),
        }
        named |= {f"ap_{size}": _average(precision[..., a, -1]) for a, size in enumerate(SIZES) if a}
        named["ar"] = _average(recall[..., 0, -1])
        named |= {f"ar_{most}": _average(recall[..., 0, m]) for m, most in enumerate(self.max_dets)}
        named |= {f"ar_{size}": _average(recall[..., a, -1]) for a, size in enumerate(SIZES) if a}
        found = named["ar"]
        return named | {"afnr": None if found is None else 1.0 - found}


@dataclass(frozen=True, kw_only=True, eq=False)
class PrCurve:
    """Precision against recall.

    Attributes:
        recall: (R,) float64 in 0..1, ascending: share of the cells found.
        precision: (R,) float64 in 0..1: share of the finds right; below 0 where unknown.
        chosen_recall: recall of the predictions from a chosen score up, or None.
    """

    recall: np.ndarray
    precision: np.ndarray
    chosen_recall: float | None = None


def compute_coco_ap(
    overlaps: Overlaps,
    *,
    kind: str,
    classes: tuple[str, ...],
    max_dets: tuple[int, ...] = MAX_DETS,
    areas: str = "livecell",
) -> CocoAp:
    """Average precision and recall over all fields.

    Args:
        overlaps: from `compute_overlaps`, of many fields through `join_overlaps`.
        kind: "mask" or "box".
        classes: names, background first; K of them.
        max_dets: predictions per field and class that count, ascending.
        areas: "livecell" (bounds at 324 and 961 px) or "coco" (at 1024 and 9216 px).

    Raises:
        ConfigError: kind, areas or max_dets is none of what is possible.
        DataError: a cell is of another class.
    """
    check_choice("kind", kind, KINDS)
    check_choice("areas", areas, AREAS)
    check_max_dets(max_dets)
    check_classes(overlaps, classes)
    table = _Table(overlaps, kind, most=max_dets[-1])
    shape = (len(classes) - 1, len(SIZES), len(max_dets))
    precision = np.full((len(IOUS), len(RECALLS), *shape), -1.0)
    recall = np.full((len(IOUS), *shape), -1.0)
    for a, bounds in enumerate(AREAS[areas]):
        is_other = table.is_other_size(bounds)
        true_counts = np.bincount(table.true_class[~is_other], minlength=len(classes))[1 : len(classes)]
        for t, (hit, error) in enumerate(table.iterate_matches(is_other, bounds)):
            for k in np.flatnonzero(true_counts):
                of_class = table.by_class[k + 1] if k + 1 < len(table.by_class) else np.zeros(0, np.int64)
                for m, most in enumerate(max_dets):
                    rows = of_class[table.rank[of_class] < most]
                    recall[t, k, a, m], precision[t, :, k, a, m] = _compute_curve(
                        hit[rows], error[rows], int(true_counts[k])
                    )
    return CocoAp(kind=kind, classes=classes[1:], max_dets=max_dets, precision=precision, recall=recall)


def check_max_dets(max_dets: tuple[int, ...]) -> None:
    """Raise ConfigError unless ``max_dets`` are ascending numbers from 1 up."""
    if not max_dets or min(max_dets) < 1 or any(b <= a for a, b in pairwise(max_dets)):
        raise ConfigError(
            explain(
                got=f"max_dets={','.join(map(str, max_dets))}",
                need="ascending numbers of predictions per field, from 1 up",
                hint="--max-dets 100,500,2000",
            )
        )


class _Table:
    """Predictions of all fields that may count, in the order in which they choose: by field, then by score."""

    def __init__(self, overlaps: Overlaps, kind: str, *, most: int) -> None:
        score = overlaps.score if kind == "mask" else overlaps.box_score
        order = np.lexsort((-score, overlaps.pred_class, overlaps.pred_field))
        field, of_class = overlaps.pred_field[order], overlaps.pred_class[order]
        first = np.flatnonzero((np.diff(field, prepend=-1) != 0) | (np.diff(of_class, prepend=-1) != 0))
        rank = np.arange(order.size) - np.repeat(first, np.diff(first, append=order.size))
        order, self.rank = order[rank < most], rank[rank < most]
        place = np.full(score.size, -1)
        place[order] = np.arange(order.size)
        size = overlaps.pred_area if kind == "mask" else overlaps.pred_box_area
        self.pred_size = size[order]
        self.true_class, self.true_size, self.ignored = overlaps.true_class, overlaps.true_size, overlaps.ignored
        # Rows of each class by falling score; a stable sort leaves equal scores in the order of the fields.
        by_score = np.lexsort((-score[order], overlaps.pred_class[order]))
        ends = np.cumsum(np.bincount(overlaps.pred_class[order]))
        self.by_class = np.split(by_score, ends[:-1]) if order.size else []
        if kind == "mask":
            pred, true = overlaps.pred, overlaps.true
            crowd = overlaps.ignored[true]
            iou = np.where(crowd, overlaps.shared / overlaps.pred_area[pred], overlaps.compute_mask_iou())
        else:
            pred, true, iou = overlaps.box_pred, overlaps.box_true, overlaps.box_iou
        keep = is_same_class(overlaps, pred, true) & (place[pred] >= 0) & (iou >= IOUS[0] - 1e-9)
        self._pred, self._true, self._iou = place[pred[keep]], true[keep], iou[keep]

    def is_other_size(self, bounds: tuple[float, float]) -> np.ndarray:
        """(G,) bool, true cells that are no miss: ignored, or of a size outside the bounds."""
        return self.ignored | (self.true_size < bounds[0]) | (self.true_size > bounds[1])

    def iterate_matches(
        self, is_other: np.ndarray, bounds: tuple[float, float]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each of IOUS (hit, error), each (D,) bool: predictions that find a cell, and those that find none."""
        # A cell that counts is preferred to one that does not, then the larger overlap, then the last given.
        order = np.lexsort((-self._true, -self._iou, is_other[self._true], self._pred))
        pred, true, iou = self._pred[order], self._true[order], self._iou[order]
        outside = (self.pred_size < bounds[0]) | (self.pred_size > bounds[1])
        for least in IOUS:
            keep = iou >= min(least, 1 - 1e-10)
            pred, true, iou = pred[keep], true[keep], iou[keep]
            taken = assign_in_order(pred, true, many=self.ignored[true])
            hit, error = np.zeros(outside.size, bool), ~outside
            hit[pred[taken]] = ~is_other[true[taken]]
            error[pred[taken]] = False
            yield hit, error


def _compute_curve(hit: np.ndarray, error: np.ndarray, true_count: int) -> tuple[float, np.ndarray]:
    """Final recall, and (R,) the precision at each of RECALLS, of predictions by falling score."""
    hits = np.flatnonzero(hit)
    found = np.arange(1, hits.size + 1)
    precision = found / (found + np.cumsum(error)[hits] + np.spacing(1))
    # Precision never rises with recall: at each recall the best that some higher one has.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall only changes at hits, so the other rows need no look.
    place = np.searchsorted(found / true_count, RECALLS, "left")
    return hits.size / true_count, np.append(envelope, np.zeros(1))[np.minimum(place, hits.size)]


def _average(values: np.ndarray) -> float | None:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
