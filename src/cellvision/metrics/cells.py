"""Scores of whole cells: found or not, of the right class or not, per field and summed over fields.

"Uncertain" true cells (class IGNORE) count nowhere: they are no miss, and a prediction on them is no hit and no error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellvision.errors import ConfigError, DataError, ShapeError, explain
from cellvision.metrics.matching import Matches, match_cells
from cellvision.metrics.semantic import compute_auroc, compute_semantic_scores, drop_undefined
from cellvision.types import IGNORE


@dataclass(frozen=True, kw_only=True, eq=False)
class FieldScore:
    """What was counted in one field (or, summed, in several).

    Attributes:
        confusion: (K, K) int64, row = true class, column = predicted class of a cell. Row 0 holds the predicted cells
            without a true one, column 0 the true cells that were missed; [0, 0] is 0.
        iou_sum: summed IoU of the matched cells.
        p_live: (M,) float64 in 0..1 of the matched cells; empty where the net gives none.
        is_live: (M,) bool, whether those cells are truly live.
    """

    confusion: np.ndarray
    iou_sum: float
    p_live: np.ndarray
    is_live: np.ndarray

    def count_viability(self, classes: tuple[str, ...]) -> tuple[int, int, int, int]:
        """Number of cells: truly live, truly dead, predicted live, predicted dead."""
        live, dead = classes.index("live"), classes.index("dead")
        true, pred = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        return int(true[live]), int(true[dead]), int(pred[live]), int(pred[dead])


@dataclass(frozen=True, kw_only=True, eq=False)
class CellScores:
    """Scores over all fields given, from summed counts; NaN where undefined.

    The headline for classes is ``class_f1``: a missed cell and an extra cell are errors of their class in it, so it
    cannot be raised by finding only the easy cells, and it compares methods that find different cells. The
    ``matched_`` scores and the AUROC look at cells found by this method only.

    Attributes:
        confusion: (K, K) int64, as in FieldScore.
        precision, recall, f1: of finding cells, whatever their class.
        iou: mean IoU of the matched cells.
        f1_per_class: (K-1,) float64, first cell class first; missed and extra cells are errors.
        class_f1: mean of f1_per_class over the classes that occur.
        matched_f1: the same over matched cells only.
        matched_accuracy: share of the matched cells with the right class.
        auroc: of P(live) over the matched cells.
    """

    confusion: np.ndarray
    precision: float
    recall: float
    f1: float
    iou: float
    f1_per_class: np.ndarray
    class_f1: float
    matched_f1: float
    matched_accuracy: float
    auroc: float

    def to_dict(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Flat "cell/..." scores for a log or a JSON file; undefined ones are absent, so no value is NaN.

        With the classes live and dead: "cell/live_dead_f1" (class_f1), "cell/live_dead_f1_matched",
        "cell/live_dead_accuracy" (matched_accuracy) and "cell/live_dead_auroc". With other classes "class" stands for
        "live_dead"; with a single cell class there are none of these.
        """
        named = {
            "cell/precision": self.precision,
            "cell/recall": self.recall,
            "cell/f1": self.f1,
            "cell/iou": self.iou,
        }
        if len(classes) > 2:
            kind = "live_dead" if has_viability(classes) else "class"
            named |= {f"cell/f1_{name}": float(f1) for name, f1 in zip(classes[1:], self.f1_per_class, strict=True)}
            named |= {
                f"cell/{kind}_f1": self.class_f1,
                f"cell/{kind}_f1_matched": self.matched_f1,
                f"cell/{kind}_accuracy": self.matched_accuracy,
                f"cell/{kind}_auroc": self.auroc,
            }
        return drop_undefined(named)


def has_viability(classes: tuple[str, ...]) -> bool:
    """Whether the cell classes are exactly live and dead."""
    return set(classes[1:]) == {"live", "dead"}


def compute_field_score(
    *,
    pred_label_image: np.ndarray,
    pred_classes: np.ndarray,
    true_label_image: np.ndarray,
    true_classes: np.ndarray,
    classes: tuple[str, ...],
    p_live: np.ndarray | None = None,
    iou: float = 0.5,
) -> FieldScore:
    """Counts of one field: cells paired by overlap, then compared by class.

    Args:
        pred_label_image: (H, W) integers, 0 = background, n = one cell each.
        pred_classes: (N,) integers; entry i is the class of label i + 1, in 1..K-1.
        true_label_image: like pred_label_image.
        true_classes: (N,) integers; the same, or IGNORE.
        classes: names, background first; K of them.
        p_live: (N,) in 0..1 of the predicted cells, or None.
        iou: smallest intersection over union that counts as found, in (0, 1].

    Raises:
        ShapeError: the label images differ in size, or a label has no class or no P(live).
        DataError: a class is out of range, or p_live is not in 0..1.
        ConfigError: p_live is given but no class is called "live", or iou is out of range.

    Example:
        >>> truth = np.array([[1, 1, 0, 2, 2]])
        >>> field = compute_field_score(
        ...     pred_label_image=truth, pred_classes=np.array([1, 1]),
        ...     true_label_image=truth, true_classes=np.array([1, 2]), classes=("background", "live", "dead"))
        >>> field.confusion.tolist()
        [[0, 0, 0], [0, 1, 0], [0, 1, 0]]
    """
    true_of_label = _index_by_label("true", true_label_image, true_classes)
    pred_of_label = _index_by_label("predicted", pred_label_image, pred_classes)
    unknown = true_of_label[true_label_image] == IGNORE
    found = match_cells(pred_label_image, true_label_image, iou=iou, ignore=unknown)
    _check_classes("predicted", pred_of_label[np.concatenate([found.pred_ids, found.extra_ids])], len(classes))
    _check_classes("true", true_of_label[np.concatenate([found.true_ids, found.missed_ids])], len(classes))
    if p_live is None:
        matched, is_live = np.zeros(0), np.zeros(0, bool)
    else:
        _check_p_live(p_live, pred_classes, classes)
        matched = p_live.astype(np.float64)[found.pred_ids - 1]
        is_live = true_of_label[found.true_ids] == classes.index("live")
    return FieldScore(
        confusion=_count_classes(found, pred_of_label, true_of_label, len(classes)),
        iou_sum=float(found.iou.sum()),
        p_live=matched,
        is_live=is_live,
    )


def sum_fields(fields: Sequence[FieldScore], classes: int) -> FieldScore:
    """The counts of all fields as if they were one field; zeros where there is none."""
    return FieldScore(
        confusion=np.sum([np.zeros((classes, classes), np.int64), *(field.confusion for field in fields)], axis=0),
        iou_sum=float(sum(field.iou_sum for field in fields)),
        p_live=np.concatenate([np.zeros(0), *(field.p_live for field in fields)]),
        is_live=np.concatenate([np.zeros(0, bool), *(field.is_live for field in fields)]),
    )


def compute_cell_scores(total: FieldScore) -> CellScores:
    """Scores from counts of one field or, through `sum_fields`, of many.

    Summed counts weigh every cell alike; a mean of per-field scores would let a field of three cells decide.

    Example:
        >>> field = FieldScore(confusion=np.array([[0, 0, 1], [1, 6, 0], [0, 1, 3]]), iou_sum=9.0,
        ...                    p_live=np.zeros(0), is_live=np.zeros(0, bool))
        >>> scores = compute_cell_scores(field)
        >>> round(scores.f1, 3), scores.iou, scores.matched_accuracy
        (0.909, 0.9, 0.9)
    """
    whole = compute_semantic_scores(total.confusion)
    matched = total.confusion.copy()
    matched[0, :] = matched[:, 0] = 0
    pairs = compute_semantic_scores(matched)
    present = ~np.isnan(whole.dice[1:])
    return CellScores(
        confusion=total.confusion,
        precision=whole.foreground_precision,
        recall=whole.foreground_recall,
        f1=whole.foreground_dice,
        iou=float(total.iou_sum / matched.sum()) if matched.sum() else float("nan"),
        f1_per_class=whole.dice[1:],
        class_f1=float(whole.dice[1:][present].mean()) if present.any() else float("nan"),
        matched_f1=pairs.mean_dice,
        matched_accuracy=pairs.accuracy,
        auroc=compute_auroc(total.p_live, total.is_live),
    )


def _index_by_label(name: str, label_image: np.ndarray, cell_classes: np.ndarray) -> np.ndarray:
    largest = int(label_image.max()) if label_image.size else 0
    if cell_classes.ndim != 1 or largest > cell_classes.size:
        raise ShapeError(
            explain(
                got=f"{name} label {largest} but {name} classes of shape {cell_classes.shape}",
                need="one class per label",
                hint="entry i of the classes belongs to label i + 1",
            )
        )
    return np.concatenate([[0], cell_classes]).astype(np.int64)


def _check_classes(name: str, found: np.ndarray, classes: int) -> None:
    if found.size and not 1 <= found.min() <= found.max() < classes:
        raise DataError(
            explain(
                got=f"{name} cells of class {found.min()} to {found.max()}",
                need=f"1 to {classes - 1}",
                hint="check that the classes are those of the data set",
            )
        )


def _check_p_live(p_live: np.ndarray, pred_classes: np.ndarray, classes: tuple[str, ...]) -> None:
    if "live" not in classes:
        raise ConfigError(
            explain(got=f"P(live) for the classes {', '.join(classes)}", need='a class "live"', hint="p_live=None")
        )
    if p_live.shape != pred_classes.shape:
        raise ShapeError(
            explain(
                got=f"P(live) of shape {p_live.shape} for classes of shape {pred_classes.shape}",
                need="one per predicted cell",
                hint="entry i belongs to label i + 1",
            )
        )
    if not np.all((p_live >= 0.0) & (p_live <= 1.0)):
        raise DataError(
            explain(got="a P(live) that is not in 0..1", need="probabilities", hint="predict again, or p_live=None")
        )


def _count_classes(found: Matches, pred_of_label: np.ndarray, true_of_label: np.ndarray, classes: int) -> np.ndarray:
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (true_of_label[found.true_ids], pred_of_label[found.pred_ids]), 1)
    np.add.at(confusion, (0, pred_of_label[found.extra_ids]), 1)
    np.add.at(confusion, (true_of_label[found.missed_ids], 0), 1)
    return confusion
