"""Which predicted cell is which true cell: the pairing that every per-cell score rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cellvision.errors import ConfigError, DataError, ShapeError, explain


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """One-to-one pairs, and who stayed alone; all ids are labels, int64 and ascending in pred_ids, extra and missed.

    Attributes:
        pred_ids, true_ids: (M,) entry i of one is paired with entry i of the other.
        iou: (M,) float64 in 0..1, of each pair.
        extra_ids: predicted cells without a true cell.
        missed_ids: true cells without a predicted cell.
        left_out_pred_ids, left_out_true_ids: cells on ignored pixels, in none of the above.
    """

    pred_ids: np.ndarray
    true_ids: np.ndarray
    iou: np.ndarray
    extra_ids: np.ndarray
    missed_ids: np.ndarray
    left_out_pred_ids: np.ndarray
    left_out_true_ids: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class _Overlaps:
    """Pixel counts per cell and per overlapping pair; background is in none of them."""

    pred_ids: np.ndarray
    true_ids: np.ndarray
    pred_ignored: np.ndarray
    true_ignored: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    iou: np.ndarray


def match_cells(pred: np.ndarray, truth: np.ndarray, *, iou: float = 0.5, ignore: np.ndarray | None = None) -> Matches:
    """Pair predicted with true cells, one to one: as many pairs as possible, among those the largest total overlap.

    Above an IoU of 0.5 a cell has at most one partner. At 0.5 and below it can have several (a prediction that merges
    two equal cells overlaps each by exactly 0.5), so the choice is then solved as an assignment.

    Ignored pixels: a true cell with at least half of its pixels there is left out. So is a predicted cell that found
    no partner and has at least half of its pixels there; half, because a cell that covers an ignored one at IoU 0.5 has
    at least that share on it. A predicted cell with a partner is never left out.

    Args:
        pred: (H, W) integers, 0 = background, other numbers = one cell each. Gaps in numbering are fine.
        truth: the same of the true cells.
        iou: smallest intersection over union that counts as found, in (0, 1].
        ignore: (H, W) bool, True where the truth is not known, or None.

    Raises:
        ShapeError: the images differ in size, or are not (H, W).
        DataError: a label image holds fractions or negative numbers.
        ConfigError: iou is outside (0, 1]; at 0 every pair would match.

    Example:
        >>> truth = np.array([[1, 1, 0, 2, 2]])
        >>> pred = np.array([[7, 7, 7, 0, 0]])
        >>> found = match_cells(pred, truth)
        >>> found.pred_ids.tolist(), found.true_ids.tolist(), found.missed_ids.tolist()
        ([7], [1], [2])
    """
    _check_label_images(pred, truth, ignore)
    if not 0.0 < iou <= 1.0:
        raise ConfigError(explain(got=f"iou={iou}", need="a number above 0, at most 1", hint="iou=0.5"))
    overlaps = _count_overlaps(pred, truth, ignore)
    usable = (overlaps.iou >= iou) & ~overlaps.true_ignored[overlaps.columns]
    rows, columns, ratio = overlaps.rows[usable], overlaps.columns[usable], overlaps.iou[usable]
    chosen = _choose_pairs(rows, columns, ratio)
    rows, columns = rows[chosen], columns[chosen]
    pred_alone = np.ones(overlaps.pred_ids.size, bool)
    pred_alone[rows] = False
    true_alone = np.ones(overlaps.true_ids.size, bool)
    true_alone[columns] = False
    return Matches(
        pred_ids=overlaps.pred_ids[rows],
        true_ids=overlaps.true_ids[columns],
        iou=ratio[chosen],
        extra_ids=overlaps.pred_ids[pred_alone & ~overlaps.pred_ignored],
        missed_ids=overlaps.true_ids[true_alone & ~overlaps.true_ignored],
        left_out_pred_ids=overlaps.pred_ids[pred_alone & overlaps.pred_ignored],
        left_out_true_ids=overlaps.true_ids[overlaps.true_ignored],
    )


def _check_label_images(pred: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> None:
    shapes = [image.shape for image in (pred, truth, ignore) if image is not None]
    if pred.ndim != 2 or len(set(shapes)) > 1:
        raise ShapeError(
            explain(
                got=f"label images of shape {', '.join(map(str, shapes))}",
                need="one (height, width) for all",
                hint="check that prediction and truth belong to the same field",
            )
        )
    for name, image in (("predicted", pred), ("true", truth)):
        if image.dtype.kind not in "iu" or (image.size and image.min() < 0):
            raise DataError(
                explain(
                    got=f"the {name} label image is {image.dtype} with values from {image.min() if image.size else 0}",
                    need="whole numbers from 0 up",
                    hint="0 for background and one number per cell",
                )
            )


def _count_overlaps(pred: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> _Overlaps:
    # Counted over horizontal runs of equal labels, some twenty times fewer than pixels; never cells x cells x pixels.
    p, t = pred.ravel(), truth.ravel()
    ignored = np.zeros(p.size, bool) if ignore is None else ignore.ravel().astype(bool)
    changes = (p[1:] != p[:-1]) | (t[1:] != t[:-1]) | (ignored[1:] != ignored[:-1])
    starts = np.flatnonzero(np.concatenate([np.ones(min(p.size, 1), bool), changes]))
    lengths = np.diff(starts, append=p.size)
    pred_ids, row = np.unique(p[starts], return_inverse=True)
    true_ids, column = np.unique(t[starts], return_inverse=True)
    ignored_lengths = lengths * ignored[starts]
    pred_area, true_area = _sum_by(row, lengths, pred_ids.size), _sum_by(column, lengths, true_ids.size)
    pred_ignored = 2 * _sum_by(row, ignored_lengths, pred_ids.size) >= pred_area
    true_ignored = 2 * _sum_by(column, ignored_lengths, true_ids.size) >= true_area
    table = coo_matrix((lengths, (row, column)), shape=(pred_ids.size, true_ids.size)).tocsr().tocoo()
    both = (pred_ids[table.row] > 0) & (true_ids[table.col] > 0)
    rows, columns, shared = table.row[both], table.col[both], table.data[both]
    pred_zero, true_zero = int(np.any(pred_ids == 0)), int(np.any(true_ids == 0))
    return _Overlaps(
        pred_ids=pred_ids[pred_zero:].astype(np.int64),
        true_ids=true_ids[true_zero:].astype(np.int64),
        pred_ignored=pred_ignored[pred_zero:],
        true_ignored=true_ignored[true_zero:],
        rows=rows - pred_zero,
        columns=columns - true_zero,
        iou=shared / (pred_area[rows] + true_area[columns] - shared),
    )


def _sum_by(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(index, weights=values, minlength=size).astype(np.int64)


def _choose_pairs(rows: np.ndarray, columns: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """(M,) positions of the chosen candidates, ordered by row."""
    if np.unique(rows).size == rows.size and np.unique(columns).size == columns.size:
        return np.argsort(rows)
    # Cells that share no candidate, even through others, do not compete: many small assignments replace a huge one.
    first_column = int(rows.max()) + 1
    size = first_column + int(columns.max()) + 1
    links = coo_matrix((np.ones(rows.size), (rows, columns + first_column)), shape=(size, size))
    _, group = connected_components(links, directed=False)
    order = np.argsort(group[rows], kind="stable")
    bounds = np.flatnonzero(np.diff(group[rows][order])) + 1
    groups = np.split(order, bounds)
    chosen = np.concatenate([pairs[_assign(rows[pairs], columns[pairs], iou[pairs])] for pairs in groups])
    return chosen[np.argsort(rows[chosen])]


def _assign(rows: np.ndarray, columns: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """(M,) positions of the candidates that give the most pairs and then the largest total IoU."""
    if rows.size == 1:
        return np.zeros(1, np.int64)
    row_ids, row = np.unique(rows, return_inverse=True)
    column_ids, column = np.unique(columns, return_inverse=True)
    # One more pair must outweigh any total IoU, which is at most the number of pairs.
    weight = np.zeros((row_ids.size, column_ids.size))
    weight[row, column] = min(weight.shape) + iou
    position = np.full(weight.shape, -1)
    position[row, column] = np.arange(rows.size)
    found = position[linear_sum_assignment(weight, maximize=True)]
    return found[found >= 0]
