"""Which predicted and true cells overlap, and by how much, of one field or of many in a row.

Masks and boxes may overlap each other. Only pairs that meet are ever listed: 3000 x 3000 cells have 9 million pairs,
of which some 10 thousand share a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.sparse import coo_matrix

from cellvision.errors import DataError, ShapeError, explain
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.mask_runs import MaskRuns, decode_masks
from cellvision.types import IGNORE

LEAST_BOX_IOU = 0.5
"""Pairs of boxes below it are not kept; no score asks for them."""

_MOST_PAIRS = 2**20
"""Pairs of intervals in memory at a time, some 50 MB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlaps:
    """D predicted and G true cells of ``fields`` fields, each in any order, and their overlaps.

    Attributes:
        fields: number of fields.
        pred_field, true_field: (D,) and (G,) int64, the field 0.. that a cell is in.
        pred_class, true_class: (D,) and (G,) int64; IGNORE in the truth stands for any class.
        score, box_score: (D,) float64.
        pred_area: (D,) int64 px of the mask.
        pred_box_area: (D,) float64 px.
        true_area: (G,) int64 px of the mask.
        true_size: (G,) float64 px by which the cell is small, medium or large.
        ignored: (G,) bool.
        pred, true, shared: (P,) int64, predicted and true cell of a pair of masks, and how many pixels they share.
        box_pred, box_true: (Q,) int64, predicted and true cell of a pair of boxes.
        box_iou: (Q,) float64 from LEAST_BOX_IOU up; with an ignored cell, the share of the predicted box that is in it.
    """

    fields: int
    pred_field: np.ndarray
    true_field: np.ndarray
    pred_class: np.ndarray
    true_class: np.ndarray
    score: np.ndarray
    box_score: np.ndarray
    pred_area: np.ndarray
    pred_box_area: np.ndarray
    true_area: np.ndarray
    true_size: np.ndarray
    ignored: np.ndarray
    pred: np.ndarray
    true: np.ndarray
    shared: np.ndarray
    box_pred: np.ndarray
    box_true: np.ndarray
    box_iou: np.ndarray

    def compute_mask_iou(self) -> np.ndarray:
        """(P,) float64 intersection over union of each pair of masks."""
        return self.shared / (self.pred_area[self.pred] + self.true_area[self.true] - self.shared)

    def select(self, preds: np.ndarray, truths: np.ndarray) -> Overlaps:
        """The predicted cells ``preds`` and true cells ``truths``, (n,) integers each, in that order, with overlaps."""
        columns = {name: getattr(self, name)[preds] for name in _PER_PRED}
        columns |= {name: getattr(self, name)[truths] for name in _PER_TRUE}
        new_pred, new_true = np.full(len(self.score), -1), np.full(len(self.ignored), -1)
        new_pred[preds], new_true[truths] = np.arange(len(preds)), np.arange(len(truths))
        for ends in (("pred", "true", "shared"), ("box_pred", "box_true", "box_iou")):
            pred, true, values = (getattr(self, name) for name in ends)
            keep = (new_pred[pred] >= 0) & (new_true[true] >= 0)
            columns |= dict(zip(ends, (new_pred[pred[keep]], new_true[true[keep]], values[keep]), strict=True))
        return Overlaps(fields=self.fields, **columns)


_PER_PRED = ("pred_field", "pred_class", "score", "box_score", "pred_area", "pred_box_area")
_PER_TRUE = ("true_field", "true_class", "true_area", "true_size", "ignored")
_TO_PRED, _TO_TRUE = ("pred", "box_pred"), ("true", "box_true")


def compute_overlaps(pred: InstanceField, truth: InstanceField) -> Overlaps:
    """The overlaps of one field.

    Args:
        pred: with scores.
        truth: of the same image.

    Raises:
        ShapeError: the two are not of one image size.
        DataError: the prediction has no scores, or a mask cannot be read.

    Example:
        >>> truth = InstanceField.from_label_image(np.array([[1, 1, 0, 2]]), np.array([1, 1]))
        >>> pred = InstanceField.from_label_image(np.array([[1, 0, 0, 0]]), np.array([1]), score=np.array([0.9]))
        >>> compute_overlaps(pred, truth).compute_mask_iou().tolist()
        [0.5]
    """
    if pred.shape != truth.shape:
        raise ShapeError(
            explain(
                got=f"predicted cells in an image of {pred.shape} px and true ones in one of {truth.shape}",
                need="one (height, width) for both",
                hint="check that prediction and truth belong to the same field",
            )
        )
    if pred.score is None:
        raise DataError(explain(got="predicted cells without scores", need="one per cell", hint="np.ones(len(pred))"))
    pred_runs, true_runs = decode_masks(pred.rles, pred.shape), decode_masks(truth.rles, truth.shape)
    sides = pred.boxes[:, 2:] - pred.boxes[:, :2]
    first, second, shared = _count_shared(pred_runs, true_runs)
    box_pred, box_true, box_iou = _find_box_pairs(pred.boxes, truth.boxes, truth.ignored)
    return Overlaps(
        fields=1,
        pred_field=np.zeros(len(pred), np.int64),
        true_field=np.zeros(len(truth), np.int64),
        pred_class=pred.class_id,
        true_class=truth.class_id,
        score=pred.score,
        box_score=pred.score if pred.box_score is None else pred.box_score,
        pred_area=pred_runs.compute_areas(),
        pred_box_area=sides[:, 0] * sides[:, 1],
        true_area=true_runs.compute_areas(),
        true_size=truth.areas,
        ignored=truth.ignored,
        pred=first,
        true=second,
        shared=shared,
        box_pred=box_pred,
        box_true=box_true,
        box_iou=box_iou,
    )


def join_overlaps(parts: Sequence[Overlaps]) -> Overlaps:
    """Many fields in a row, in the order given."""
    columns = {name: [np.zeros(0, _TYPES.get(name, np.int64))] for name in _NAMES}
    count, preds, truths = 0, 0, 0
    for part in parts:
        shift = dict.fromkeys(("pred_field", "true_field"), count)
        shift |= dict.fromkeys(_TO_PRED, preds) | dict.fromkeys(_TO_TRUE, truths)
        for name in _NAMES:
            values = getattr(part, name)
            columns[name].append(values + shift[name] if name in shift else values)
        count, preds, truths = count + part.fields, preds + len(part.score), truths + len(part.ignored)
    return Overlaps(fields=count, **{name: np.concatenate(values) for name, values in columns.items()})


_NAMES = tuple(field.name for field in fields(Overlaps) if field.name != "fields")
_TYPES: dict[str, type[np.generic]] = {
    "ignored": np.bool_, **dict.fromkeys(("score", "box_score", "pred_box_area", "true_size", "box_iou"), np.float64),
}  # fmt: skip


def check_classes(overlaps: Overlaps, classes: tuple[str, ...]) -> None:
    """Raise DataError unless every cell is of one of the classes after the first, the background."""
    found = np.concatenate([overlaps.pred_class, overlaps.true_class[~overlaps.ignored]])
    if found.size and not 1 <= found.min() <= found.max() < len(classes):
        raise DataError(
            explain(
                got=f"cells of class {found.min()} to {found.max()}",
                need=f"1 to {len(classes) - 1} ({', '.join(classes[1:])})",
                hint="check that the classes are those of the data set",
            )
        )


def is_same_class(overlaps: Overlaps, pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Whether pairs of cells are of one class; a true cell of class IGNORE is of any."""
    return (overlaps.pred_class[pred] == overlaps.true_class[true]) | (overlaps.true_class[true] == IGNORE)


def _count_shared(pred: MaskRuns, true: MaskRuns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) each: predicted mask, true mask and the pixels they share, of pairs that share any."""
    size = (pred.count, true.count)
    nothing = np.zeros(0, np.int64)
    table = coo_matrix((nothing, (nothing, nothing)), shape=size).tocsr()
    for one, other in _join_intervals(pred.start, pred.end, true.start, true.end):
        shared = np.minimum(pred.end[one], true.end[other]) - np.maximum(pred.start[one], true.start[other])
        table = table + coo_matrix((shared, (pred.mask[one], true.mask[other])), shape=size).tocsr()
    found = table.tocoo()
    return found.row.astype(np.int64), found.col.astype(np.int64), found.data


def _find_box_pairs(
    pred: np.ndarray, true: np.ndarray, ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Q,) each: predicted box, true box and their overlap, where that reaches LEAST_BOX_IOU."""
    pred_area = (pred[:, 2] - pred[:, 0]) * (pred[:, 3] - pred[:, 1])
    true_area = (true[:, 2] - true[:, 0]) * (true[:, 3] - true[:, 1])
    found = []
    for one, other in _join_intervals(pred[:, 0], pred[:, 2], true[:, 0], true[:, 2]):
        high = np.minimum(pred[one, 3], true[other, 3]) - np.maximum(pred[one, 1], true[other, 1])
        keep = high > 0
        one, other, high = one[keep], other[keep], high[keep]
        shared = high * (np.minimum(pred[one, 2], true[other, 2]) - np.maximum(pred[one, 0], true[other, 0]))
        whole = pred_area[one] + np.where(ignored[other], 0, true_area[other] - shared)
        keep = (shared > 0) & (shared >= (LEAST_BOX_IOU - 1e-9) * whole)
        found.append((one[keep], other[keep], shared[keep] / whole[keep]))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    one, other, overlap = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((other, one))
    return one[order], other[order], overlap[order]


def _join_intervals(
    start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions (n,) of all pairs of half-open intervals that meet, some at a time.

    Of two intervals that meet, one starts inside the other: two look-ups in sorted starts find every pair once.
    """
    order = np.argsort(other_start, kind="stable")
    starts = other_start[order]
    low, high = np.searchsorted(starts, start, "left"), np.searchsorted(starts, end, "left")
    for one, place in _expand(low, high):
        yield one, order[place]
    order = np.argsort(start, kind="stable")
    starts = start[order]
    low, high = np.searchsorted(starts, other_start, "right"), np.searchsorted(starts, other_end, "left")
    for other, place in _expand(low, high):
        yield order[place], other


def _expand(low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row, every integer of low[row]..high[row]), for as many rows at a time as make _MOST_PAIRS pairs."""
    counts = np.maximum(high - low, 0)
    done = np.cumsum(counts)
    first = 0
    while first < counts.size:
        reached = done[first - 1] if first else 0
        last = max(int(np.searchsorted(done, reached + _MOST_PAIRS, "right")), first + 1)
        some = counts[first:last]
        row = np.repeat(np.arange(first, last), some)
        yield row, np.arange(row.size) - np.repeat(np.cumsum(some) - some, some) + low[row]
        first = last
