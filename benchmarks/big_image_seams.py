"""Whether the seams between tiles show in a result: cells on them against cells on the same lines, moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix

from cellvision.runtime.tiles.tiling import plan_spans

BAND_PX = 512
AWAY_PX, STEP_PX = 20, 10
ERRORS = ("missed", "extra", "doubled", "cut")
NEAR_PX = 2
"""A cell is on a line that is so near to it; a prediction that ends there may have been cut .."""
LEAST_LOST = 0.15
""".. if the true cell goes on by more than this share of its length, and NEAR_PX, than on the other side."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Lines across an image, at whole px: 5 is the line between rows (or columns) 4 and 5.

    Attributes:
        down: (n,) int64 y of horizontal lines.
        across: (m,) int64 x of vertical ones.
    """

    down: np.ndarray
    across: np.ndarray

    def cross(self, boxes: np.ndarray) -> np.ndarray:
        """(N,) bool: a line goes through the box, (N, 4) top, left, bottom, right, or ends within NEAR_PX of it."""
        crossed = np.zeros(len(boxes), bool)
        for lines, first, last in ((self.down, boxes[:, 0], boxes[:, 2]), (self.across, boxes[:, 1], boxes[:, 3])):
            crossed |= np.searchsorted(lines, last + NEAR_PX, "right") > np.searchsorted(lines, first - NEAR_PX, "left")
        return crossed


def find_lines(shape: tuple[int, int], *, tile_px: int, overlap_px: int) -> dict[str, Lines]:
    """By name: borders between tiles, and borders of what a tile is shown; all are tile_px apart, or two such sets."""
    sides: dict[str, list[np.ndarray]] = {"tile borders": [], "window borders": []}
    for length in shape:
        spans = plan_spans(length, tile_px=tile_px, overlap_px=overlap_px)
        ends = [span.window_start for span in spans[1:]] + [span.window_stop for span in spans[:-1]]
        sides["tile borders"].append(np.array([span.start for span in spans[1:]], np.int64))
        sides["window borders"].append(np.unique(ends).astype(np.int64))
    return {name: Lines(down=down, across=across) for name, (down, across) in sides.items()}


def shift_lines(lines: dict[str, Lines], name: str, *, shape: tuple[int, int], tile_px: int) -> Iterator[Lines]:
    """Some of the lines moved to where none is, AWAY_PX or more from any, by every STEP_PX that this allows."""
    places = np.unique(np.concatenate([part for some in lines.values() for part in (some.down, some.across)]) % tile_px)
    own = lines[name]
    for shift in range(AWAY_PX, tile_px - AWAY_PX + 1, STEP_PX):
        moved = (np.concatenate([own.down, own.across]) + shift) % tile_px
        gaps = np.abs(moved[:, None] - places)
        if np.minimum(gaps, tile_px - gaps).min(initial=tile_px) >= AWAY_PX:
            down, across = own.down + shift, own.across + shift
            yield Lines(down=down[down < shape[0]], across=across[across < shape[1]])


def keep_away(lines: Lines, others: Sequence[Lines]) -> Lines:
    """Those lines that are AWAY_PX or more from all others of their direction."""
    kept = {}
    for name in ("down", "across"):
        own, strange = getattr(lines, name), np.concatenate([getattr(other, name) for other in others])
        kept[name] = own[np.abs(own[:, None] - strange).min(axis=1, initial=AWAY_PX) >= AWAY_PX]
    return Lines(**kept)


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlaps:
    """Labels 1..N of the truth and 1..M of a prediction; entry 0 of every array is of the background.

    Attributes:
        true_boxes, pred_boxes: (N + 1, 4) and (M + 1, 4) int64, top, left, bottom, right, one past the last.
        true_area, pred_area: (N + 1,) and (M + 1,) int64 px.
        true, pred, shared: (P,) int64 labels that meet, and in how many px.
    """

    true_boxes: np.ndarray
    pred_boxes: np.ndarray
    true_area: np.ndarray
    pred_area: np.ndarray
    true: np.ndarray
    pred: np.ndarray
    shared: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(P,) float64 intersection over union of each pair."""
        return self.shared / (self.true_area[self.true] + self.pred_area[self.pred] - self.shared)


def measure_overlaps(truth: np.ndarray, pred: np.ndarray) -> Overlaps:
    """Boxes, areas and overlaps of two (H, W) label images, which may be mapped from files: read in bands."""
    tops = range(0, len(truth), BAND_PX)
    counts = [max(int(labels[top : top + BAND_PX].max()) for top in tops) for labels in (truth, pred)]
    boxes = [np.tile(np.array([2**31, 2**31, 0, 0], np.int64), (count + 1, 1)) for count in counts]
    table = coo_matrix((counts[0] + 1, counts[1] + 1), dtype=np.int64).tocsr()
    for top in tops:
        t, p = (labels[top : top + BAND_PX].ravel().astype(np.int64) for labels in (truth, pred))
        # Over horizontal runs of equal labels, some twenty times fewer than pixels.
        changes = (t[1:] != t[:-1]) | (p[1:] != p[:-1])
        changes[truth.shape[1] - 1 :: truth.shape[1]] = True
        starts = np.flatnonzero(np.append(True, changes))
        lengths = np.diff(starts, append=t.size)
        row, left = np.divmod(starts, truth.shape[1])
        for labels, box in ((t[starts], boxes[0]), (p[starts], boxes[1])):
            np.minimum.at(box, (labels, 0), row + top)
            np.minimum.at(box, (labels, 1), left)
            np.maximum.at(box, (labels, 2), row + top + 1)
            np.maximum.at(box, (labels, 3), left + lengths)
        table = table + coo_matrix((lengths, (t[starts], p[starts])), shape=table.shape).tocsr()
    areas = [np.asarray(table.sum(axis=axis)).ravel() for axis in (1, 0)]
    met = table.tocoo()
    both = (met.row > 0) & (met.col > 0)
    return Overlaps(
        true_boxes=boxes[0],
        pred_boxes=boxes[1],
        true_area=areas[0],
        pred_area=areas[1],
        true=met.row[both].astype(np.int64),
        pred=met.col[both].astype(np.int64),
        shared=met.data[both],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdicts:
    """What became of each cell; entry 0 is of the background.

    Attributes:
        is_true, is_pred: (N + 1,) and (M + 1,) bool, the label occurs.
        iou: (N + 1,) float64, with the prediction that found the cell at an IoU above 0.5; else 0.
        extra: (M + 1,) bool, a prediction that found no cell.
        doubled: (N + 1,) bool, two predictions or more lie mostly in the cell.
        overlaps: boxes, areas, pairs.
    """

    is_true: np.ndarray
    is_pred: np.ndarray
    iou: np.ndarray
    extra: np.ndarray
    doubled: np.ndarray
    overlaps: Overlaps

    def find_cut(self, lines: Lines) -> np.ndarray:
        """(N + 1,) bool: a prediction that lies mostly in the cell ends at a line, and the cell goes on beyond it."""
        pairs, cut = self.overlaps, np.zeros(len(self.iou), bool)
        inside = 2 * pairs.shared >= pairs.pred_area[pairs.pred]
        true, pred = pairs.true[inside], pairs.pred[inside]
        for axis, places in ((0, lines.down), (1, lines.across)):
            own, whole = pairs.pred_boxes[pred][:, [axis, axis + 2]], pairs.true_boxes[true][:, [axis, axis + 2]]
            least = np.maximum(LEAST_LOST * (whole[:, 1] - whole[:, 0]), NEAR_PX)
            lost = np.stack([own[:, 0] - whole[:, 0], whole[:, 1] - own[:, 1]], axis=1)
            # A prediction that is too narrow on both sides has not been cut.
            one_sided = lost - np.maximum(lost[:, ::-1], 0) > least[:, None]
            cut[true[(one_sided & is_near(own, places)).any(axis=1)]] = True
        return cut


def is_near(places: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Which of some px are within NEAR_PX of one of the lines (ascending)."""
    return np.searchsorted(lines, places - NEAR_PX, "left") < np.searchsorted(lines, places + NEAR_PX, "right")


def judge(overlaps: Overlaps) -> Verdicts:
    """What became of each cell."""
    good = overlaps.iou > 0.5  # then a cell has one partner at most
    iou = np.zeros(len(overlaps.true_area))
    iou[overlaps.true[good]] = overlaps.iou[good]
    is_pred = overlaps.pred_area > 0
    is_pred[0] = False
    extra = is_pred.copy()
    extra[overlaps.pred[good]] = False
    is_true = overlaps.true_area > 0
    is_true[0] = False
    inside = 2 * overlaps.shared > overlaps.pred_area[overlaps.pred]
    doubled = np.bincount(overlaps.true[inside], minlength=len(iou)) > 1
    return Verdicts(is_true=is_true, is_pred=is_pred, iou=iou, extra=extra, doubled=doubled, overlaps=overlaps)


def count_errors(verdicts: Verdicts, lines: Lines | None) -> dict[str, int | float]:
    """Of the cells that a line goes through, or of all: how many there are, and how many went wrong in which way."""
    pairs = verdicts.overlaps
    true = verdicts.is_true & (lines.cross(pairs.true_boxes) if lines else True)
    pred = verdicts.is_pred & (lines.cross(pairs.pred_boxes) if lines else True)
    missed, extra = true & (verdicts.iou == 0), pred & verdicts.extra
    found, good = int(true.sum() - missed.sum()), int(pred.sum() - extra.sum())
    recall, precision = found / max(true.sum(), 1), good / max(pred.sum(), 1)
    return {
        "cells": int(true.sum()),
        "F1": 2 * recall * precision / max(recall + precision, 1e-9),
        "recall": recall,
        "precision": precision,
        "IoU": float(verdicts.iou[true & ~missed].mean()) if found else 0.0,
        "missed": int(missed.sum()),
        "extra": int(extra.sum()),
        "doubled": int((true & verdicts.doubled).sum()),
        "cut": int((true & verdicts.find_cut(lines)).sum()) if lines else 0,
    }


def average(rows: list[dict[str, int | float]]) -> dict[str, int | float]:
    """Means over sets of lines; of each error the rate per 1000 cells, and as "sd ..." how much that scatters."""
    found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    for error in ERRORS:
        rates = [compute_rate(row, error) for row in rows]
        found |= {error: float(np.mean(rates)), f"sd {error}": float(np.std(rates))}
    return found


def compute_rate(row: dict[str, int | float], error: str) -> float:
    """Errors per 1000 cells."""
    return 1000 * row[error] / max(row["cells"], 1)
