"""In what way predicted cells are wrong: missed, false, merged, split or inexact, cell by cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cellvision.errors import ConfigError, ShapeError, explain

MOSTLY = 0.5
"""More than this share of a cell's pixels is "mostly"; no cell can lie mostly in two others."""

SMALLEST_PIECE = 0.1
"""Smallest share of a true cell for a prediction inside it to be a piece of it, rather than a false speck."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CellErrors:
    """The cells of a field by what became of them. Each true and each predicted cell is in one of the kinds.

    Kinds are decided in this order, and a cell that has one takes no part in the next:

    merged: a prediction in which two or more true cells lie mostly.
    split: a true cell in which two or more predictions lie mostly, each with at least SMALLEST_PIECE of the true cell.
        Also where one of the pieces alone would count as found.
    found: a pair whose intersection over union reaches ``iou``; no cell can be in two such pairs.
    inexact: a true cell without such a pair, and of the predictions left the one with the largest intersection over
        union, where that reaches ``touch``. One prediction can be the inexact one of two true cells.
    missed, false: the true and the predicted cells that are left.

    Attributes:
        found: (n, 2) int64, predicted and true label.
        missed: (n,) int64, true labels.
        false: (n,) int64, predicted labels.
        merged: from predicted label to the (n,) true labels in it.
        split: from true label to the (n,) predicted labels in it.
        inexact: (n, 2) int64, predicted and true label.
    """

    found: np.ndarray
    missed: np.ndarray
    false: np.ndarray
    merged: dict[int, np.ndarray]
    split: dict[int, np.ndarray]
    inexact: np.ndarray

    @property
    def counts(self) -> dict[str, int]:
        """Number of entries of each kind: predictions for false and merged, true cells for all others."""
        kinds = ("found", "missed", "false", "merged", "split", "inexact")
        return {kind: len(getattr(self, kind)) for kind in kinds}

    @property
    def true_count(self) -> int:
        """Number of true cells."""
        return (
            len(self.found)
            + len(self.missed)
            + len(self.split)
            + len(self.inexact)
            + sum(map(len, self.merged.values()))
        )

    @property
    def found_share(self) -> float:
        """Found cells over found and wrong ones, in 0..1; 1 where there is neither."""
        wrong = sum(self.counts.values()) - len(self.found)
        return len(self.found) / max(1, len(self.found) + wrong) if wrong else 1.0


def classify_errors(
    pred_label_image: np.ndarray,
    true_label_image: np.ndarray,
    *,
    iou: float = 0.5,
    touch: float = 0.1,
    ignore: np.ndarray | None = None,
) -> CellErrors:
    """Tell each cell's kind from the overlaps of predicted with true cells; see CellErrors.

    Args:
        pred_label_image: (H, W) integers, 0 = background, any other number = one cell.
        true_label_image: like pred_label_image.
        iou: smallest intersection over union that counts as found, in 0.5..1; below it a cell could be found twice.
        touch: smallest intersection over union that counts as inexact rather than missed and false, in (0, iou].
        ignore: (H, W) bool, pixels of unknown truth; cells with at least half their pixels there are left out.

    Raises:
        ShapeError: the images differ in size.
        ConfigError: iou or touch is out of range.

    Example:
        >>> errors = classify_errors(np.array([[1, 1, 1, 1, 0, 2]]), np.array([[1, 1, 2, 2, 0, 0]]))
        >>> errors.merged, errors.false
        ({1: array([1, 2])}, array([2]))
    """
    _check(pred_label_image, true_label_image, iou, touch)
    pred = _Cells(pred_label_image, ignore)
    true = _Cells(true_label_image, ignore)
    p, t, shared = _count_shared(pred, true)
    merged = _group(p, t, shared > MOSTLY * true.area[t])
    free = ~np.isin(p, list(merged)) & ~np.isin(t, _join(merged.values()))
    split = _group(t, p, free & (shared > MOSTLY * pred.area[p]) & (shared >= SMALLEST_PIECE * true.area[t]))
    free &= ~np.isin(t, list(split)) & ~np.isin(p, _join(split.values()))
    overlap = shared / (pred.area[p] + true.area[t] - shared)
    found = np.flatnonzero(free & (overlap >= iou))
    free &= ~np.isin(p, p[found]) & ~np.isin(t, t[found]) & (overlap >= touch)
    near = np.flatnonzero(free)
    near = near[np.lexsort((-overlap[near], t[near]))]  # by true cell, its best prediction first
    near = near[np.unique(t[near], return_index=True)[1]]
    done_p = np.concatenate([p[found], p[near], list(merged), _join(split.values())])
    done_t = np.concatenate([t[found], t[near], list(split), _join(merged.values())])
    return CellErrors(
        found=_name(pred, true, p[found], t[found]),
        missed=true.label[~np.isin(np.arange(len(true.label)), done_t)],
        false=pred.label[~np.isin(np.arange(len(pred.label)), done_p)],
        merged={int(pred.label[one]): true.label[group] for one, group in merged.items()},
        split={int(true.label[one]): pred.label[group] for one, group in split.items()},
        inexact=_name(pred, true, p[near], t[near]),
    )


class _Cells:
    """Labels (n,) and areas (n,) of the cells that count, and the number 0..n-1 of each pixel's cell, else -1."""

    def __init__(self, label_image: np.ndarray, ignore: np.ndarray | None) -> None:
        label, inverse = np.unique(label_image, return_inverse=True)
        number = inverse.ravel()
        area = np.bincount(number, minlength=len(label))
        unknown: np.ndarray = np.zeros(len(label))
        if ignore is not None:
            unknown = np.bincount(number, weights=ignore.ravel(), minlength=len(label))
        counts = (label != 0) & (2 * unknown < area)
        self.label, self.area = label[counts].astype(np.int64), area[counts]
        self.number = np.where(counts, np.cumsum(counts) - 1, -1)[number]


def _count_shared(pred: _Cells, true: _Cells) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) each: numbers of predicted and true cell, and pixels they share, of every pair that shares any."""
    both = (pred.number >= 0) & (true.number >= 0)
    base = len(true.label) + 1
    pairs, shared = np.unique(pred.number[both] * base + true.number[both], return_counts=True)
    return pairs // base, pairs % base, shared


def _group(one: np.ndarray, other: np.ndarray, linked: np.ndarray) -> dict[int, np.ndarray]:
    """From each of ``one`` that is linked to two or more of ``other`` to those."""
    several = [int(cell) for cell, times in zip(*np.unique(one[linked], return_counts=True), strict=True) if times > 1]
    return {cell: other[linked & (one == cell)] for cell in several}


def _join(groups: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *groups])


def _name(pred: _Cells, true: _Cells, p: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.stack([pred.label[p], true.label[t]], axis=1)


def _check(pred_label_image: np.ndarray, true_label_image: np.ndarray, iou: float, touch: float) -> None:
    if pred_label_image.shape != true_label_image.shape:
        raise ShapeError(
            explain(
                got=f"predicted labels of {pred_label_image.shape} px and true ones of {true_label_image.shape}",
                need="images of one field",
                hint="check that the files belong together",
            )
        )
    if not 0.5 <= iou <= 1.0:
        raise ConfigError(explain(got=f"iou={iou}", need="0.5 to 1, so that no cell is found twice", hint="iou=0.5"))
    if not 0.0 < touch <= iou:
        raise ConfigError(explain(got=f"touch={touch}", need=f"above 0, at most iou={iou}", hint="touch=0.1"))
