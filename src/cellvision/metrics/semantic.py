"""Scores of a class map, pixel by pixel; the same arithmetic serves any confusion matrix.

One rule for what is undefined: a class that is neither in the truth nor in the prediction has no score (NaN) and is
left out of every mean. A class that is only in one of the two scores 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellvision.errors import DataError, ShapeError, explain
from cellvision.types import IGNORE


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticScores:
    """Scores per class (K,) float64 and their means, all in 0..1 or NaN where undefined.

    F1 is not listed: per class it is the Dice coefficient, and macro F1 is ``mean_dice``.

    Attributes:
        iou, dice, precision, recall: (K,) one per class, background first.
        miou, mean_dice, mean_precision, mean_recall: means over the classes present, background included.
        accuracy: share of pixels with the right class.
        foreground_iou, foreground_dice, foreground_precision, foreground_recall: all classes but the first as one.
    """

    iou: np.ndarray
    dice: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    miou: float
    mean_dice: float
    mean_precision: float
    mean_recall: float
    accuracy: float
    foreground_iou: float
    foreground_dice: float
    foreground_precision: float
    foreground_recall: float

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Flat "pixel/..." scores for a log or a JSON file; undefined ones are absent, so no value is NaN."""
        named = {
            f"pixel/{score}_{name}": float(getattr(self, score)[k])
            for score in ("iou", "dice", "precision", "recall")
            for k, name in enumerate(classes)
        }
        named |= {
            "pixel/miou": self.miou,
            "pixel/dice": self.mean_dice,
            # Dice and F1 of a set of pixels are the same quantity; both names are there because both are searched for.
            "pixel/f1": self.mean_dice,
            "pixel/precision": self.mean_precision,
            "pixel/recall": self.mean_recall,
            "pixel/accuracy": self.accuracy,
            "pixel/foreground_iou": self.foreground_iou,
            "pixel/foreground_dice": self.foreground_dice,
            "pixel/foreground_precision": self.foreground_precision,
            "pixel/foreground_recall": self.foreground_recall,
        }
        return drop_undefined(named)


def compute_confusion(pred_classes: np.ndarray, true_classes: np.ndarray, classes: int) -> np.ndarray:
    """(K, K) int64 pixel counts: row = true class, column = predicted class; pixels whose truth is IGNORE are left out.

    Args:
        pred_classes: integers of any shape, each in 0..classes-1 (anything where the truth is IGNORE).
        true_classes: same shape, each in 0..classes-1 or IGNORE.
        classes: K, background included.

    Raises:
        ShapeError: the shapes differ.
        DataError: a class number is out of range.

    Example:
        >>> compute_confusion(np.array([0, 1, 1]), np.array([0, 1, 255]), 2).tolist()
        [[1, 0], [0, 1]]
    """
    if pred_classes.shape != true_classes.shape:
        raise ShapeError(
            explain(
                got=f"predicted classes of shape {pred_classes.shape}, true classes of shape {true_classes.shape}",
                need="equal shapes",
                hint="check that prediction and truth belong to the same field",
            )
        )
    known = true_classes != IGNORE
    pred, true = pred_classes[known].astype(np.int64), true_classes[known].astype(np.int64)
    for name, values in (("predicted", pred), ("true", true)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise DataError(
                explain(
                    got=f"{name} classes from {values.min()} to {values.max()}",
                    need=f"0 to {classes - 1}, or {IGNORE} in the truth",
                    hint="check that the classes are those of the data set",
                )
            )
    return np.bincount(true * classes + pred, minlength=classes * classes).reshape(classes, classes)


def compute_semantic_scores(confusion: np.ndarray) -> SemanticScores:
    """Scores from a confusion matrix (K, K) with true classes in rows, background first.

    Example:
        >>> scores = compute_semantic_scores(np.array([[6, 1], [1, 2]]))
        >>> scores.iou.tolist(), scores.miou, scores.accuracy
        ([0.75, 0.5], 0.625, 0.8)
    """
    counts = confusion.astype(np.float64)
    hits = np.diag(counts)
    false, missed = counts.sum(axis=0) - hits, counts.sum(axis=1) - hits
    iou, dice, precision, recall = _compute_ratios(hits, false, missed)
    whole = [np.array([n]) for n in (counts[1:, 1:].sum(), counts[0, 1:].sum(), counts[1:, 0].sum())]
    fg_iou, fg_dice, fg_precision, fg_recall = (float(ratio[0]) for ratio in _compute_ratios(*whole))
    return SemanticScores(
        iou=iou,
        dice=dice,
        precision=precision,
        recall=recall,
        miou=_mean_defined(iou),
        mean_dice=_mean_defined(dice),
        mean_precision=_mean_defined(precision),
        mean_recall=_mean_defined(recall),
        accuracy=float(hits.sum() / counts.sum()) if counts.sum() else float("nan"),
        foreground_iou=fg_iou,
        foreground_dice=fg_dice,
        foreground_precision=fg_precision,
        foreground_recall=fg_recall,
    )


def compute_auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores higher than a negative, ties counting half; NaN unless both kinds occur.

    Args:
        scores: (N,) numbers, higher = more likely positive.
        positive: (N,) bool.

    Example:
        >>> compute_auroc(np.array([0.9, 0.8, 0.3]), np.array([True, False, False]))
        1.0
    """
    positive = positive.astype(bool)
    hits, others = scores[positive], np.sort(scores[~positive])
    if hits.size == 0 or others.size == 0:
        return float("nan")
    # Counting the pairs in the right order is the Mann-Whitney statistic: the area without building the curve.
    below = np.searchsorted(others, hits, "left")
    below_or_tied = np.searchsorted(others, hits, "right")
    return float((below + below_or_tied).mean() / (2 * others.size))


def compute_binned_auroc(histogram: np.ndarray) -> float:
    """AUROC from score histograms; NaN unless both rows count something.

    Scores in one bin count as ties, so with fine bins the result differs from `compute_auroc` by less than the chance
    that a positive and a negative fall into the same bin.

    Args:
        histogram: (2, bins) counts: row 0 negatives, row 1 positives; bins from low to high scores.
    """
    negatives, positives = histogram.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


def drop_undefined(scores: dict[str, float]) -> dict[str, float]:
    """The scores that are not NaN: an undefined score is absent, because NaN is not JSON and stops a monitor."""
    return {name: float(value) for name, value in scores.items() if not np.isnan(value)}


def _compute_ratios(hits: np.ndarray, false: np.ndarray, missed: np.ndarray) -> tuple[np.ndarray, ...]:
    present = hits + false + missed > 0

    def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(present, part / np.maximum(whole, 1), np.nan)

    return (
        divide(hits, hits + false + missed),
        divide(2 * hits, 2 * hits + false + missed),
        divide(hits, hits + false),
        divide(hits, hits + missed),
    )


def _mean_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
