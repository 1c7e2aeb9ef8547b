"""Greedy suppression of boxes that show what a better box shows."""

from __future__ import annotations

import numpy as np

_BLOCK = 256


def suppress_boxes(
    boxes: np.ndarray, class_id: np.ndarray, *, iou: float, limit: int | None = None, group: np.ndarray | None = None
) -> np.ndarray:
    """Places of the boxes that stay, (n,) int64 ascending: none overlaps a better one of its class too much.

    Done in blocks: against the boxes that stayed before, then one by one within the block. Memory grows with the number
    of boxes, not with its square. All of it in single precision, as net and graph compute it.

    Args:
        boxes: (D, 4) float32, left, top, right, bottom; the best first.
        class_id: (D,) integers; boxes of different classes never suppress each other.
        iou: largest intersection over union that two boxes of a class may have.
        limit: stop when so many stay; None for no limit.
        group: (D,) integers; boxes of the same group never suppress each other. None lets all do.

    Example:
        >>> boxes = np.array([[0, 0, 9, 9], [1, 0, 9, 9], [8, 0, 17, 9]], np.float32)
        >>> suppress_boxes(boxes, np.array([1, 1, 1]), iou=0.5)
        array([0, 2])
    """
    limit = len(boxes) if limit is None else limit
    boxes = np.ascontiguousarray(boxes, np.float32)
    kept = np.zeros(0, np.int64)
    for start in range(0, len(boxes), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(boxes)))
        block = block[~_find_rivals(boxes, class_id, group, block, kept, iou).any(axis=1)]
        rivals = _find_rivals(boxes, class_id, group, block, block, iou)
        stays = np.ones(len(block), bool)
        for at in range(len(block)):
            if stays[at]:
                stays[at + 1 :] &= ~rivals[at, at + 1 :]
        kept = np.concatenate([kept, block[stays]])[:limit]
        if len(kept) == limit:
            break
    return kept


def _find_rivals(
    boxes: np.ndarray, class_id: np.ndarray, group: np.ndarray | None, ours: np.ndarray, theirs: np.ndarray, iou: float
) -> np.ndarray:
    """(n, m) bool: box ``ours[i]`` and box ``theirs[j]`` cannot both stay."""
    one, other = boxes[ours][:, None], boxes[theirs][None]
    shared = np.maximum(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0).prod(-1)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = areas[ours][:, None] + areas[theirs][None] - shared
    with np.errstate(divide="ignore", invalid="ignore"):  # two boxes without an inside are no rivals
        found = (shared / union).astype(np.float64) > iou
    found &= class_id[ours][:, None] == class_id[theirs][None]
    if group is not None:
        found &= group[ours][:, None] != group[theirs][None]
    return found
