"""Masks as COCO segmentations: run lengths of all cells of a label image at once, and outlines along pixel edges."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Point = tuple[int, int]


def encode_cells(label_image: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Compressed RLE of every cell, without an image of its own for each.

    Args:
        label_image: (H, W) integers, 0 = background; gaps in numbering are fine.

    Returns:
        labels: (N,) those that have pixels, ascending.
        rles: one {"size": [H, W], "counts": text} each, as in COCO files.

    Example:
        >>> encode_cells(np.array([[0, 3, 3], [0, 3, 0]]))[1]
        [{'size': [2, 3], 'counts': '231'}]
    """
    height, width = label_image.shape
    columns = label_image.T.ravel()
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    ends = np.append(starts[1:], columns.size)
    of_cells = columns[starts] > 0
    starts, ends = starts[of_cells], ends[of_cells]
    order = np.argsort(columns[starts], kind="stable")
    starts, ends = starts[order], ends[order]
    labels, first = np.unique(columns[starts], return_index=True)
    plain = []
    for low, high in pairwise([*first, len(starts)]):
        edges = np.stack([starts[low:high], ends[low:high]], axis=1).ravel()
        # A run of no pixels at the end is left out, as pycocotools does: equal masks have equal text.
        last = [columns.size] if edges[-1] < columns.size else []
        plain.append({"size": [height, width], "counts": np.diff(edges, prepend=0, append=last).tolist()})
    rles = coco_mask.frPyObjects(plain, height, width) if plain else []
    return labels, [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in rles]


def trace_polygons(mask: np.ndarray, *, top: int, left: int, rle: dict[str, Any]) -> list[list[int]] | None:
    """Polygons [x, y, x, y, ...] along the pixel edges of a cell, or None where polygons cannot say it.

    COCO's polygons cannot hold a hole. What is returned gives back exactly the cell with pycocotools.

    Args:
        mask: (h, w) bool, a part of the image that holds the whole cell.
        top: where the part begins in the image, in px.
        left: as ``top``.
        rle: the cell in the image, see ``encode_cells``.
    """
    polygons = []
    for loop in _trace_loops(mask):
        x, y = np.array(loop).T
        if np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) < 0:
            return None  # it runs the other way round: a hole
        polygons.append(np.stack([x + left, y + top], axis=1).ravel().tolist())
    again = coco_mask.merge(coco_mask.frPyObjects(polygons, *rle["size"]))
    return polygons if again["counts"] == rle["counts"].encode() else None


def _trace_loops(mask: np.ndarray) -> list[list[Point]]:
    """Closed walks along pixel edges, the mask to the right, as corners (x, y); pixels that touch by a corner part."""
    padded = np.pad(mask, 1).astype(np.int8)
    onward: dict[Point, list[Point]] = defaultdict(list)
    down, right = np.diff(padded, axis=0), np.diff(padded, axis=1)
    for y, x in np.argwhere(down[:, 1:-1]).tolist():  # between row y - 1 and row y of the mask
        start, end = ((x, y), (x + 1, y)) if down[y, x + 1] > 0 else ((x + 1, y), (x, y))
        onward[start].append(end)
    for y, x in np.argwhere(right[1:-1]).tolist():
        start, end = ((x, y + 1), (x, y)) if right[y + 1, x] > 0 else ((x, y), (x, y + 1))
        onward[start].append(end)
    loops = []
    while onward:
        here, ahead = next((point, ends[0]) for point, ends in onward.items())
        loop = _walk(onward, here, ahead)
        steps = zip([loop[-1], *loop], loop, [*loop[1:], loop[0]], strict=False)
        loops.append([here for before, here, after in steps if _turns(before, here, after)])
    return loops


def _walk(onward: dict[Point, list[Point]], start: Point, first: Point) -> list[Point]:
    """Follow edges from ``start`` until they close, using them up; where two lead on, the one to the right."""
    loop, here, ahead = [start], start, first
    while True:
        onward[here].remove(ahead)
        if not onward[here]:
            del onward[here]
        before, here = here, ahead
        turned = (here[0] + before[1] - here[1], here[1] + here[0] - before[0])  # a right turn, y pointing down
        if here not in onward or (here == start and turned == first):
            return loop
        loop.append(here)
        ahead = turned if turned in onward[here] else onward[here][0]


def _turns(a: Point, b: Point, c: Point) -> bool:
    return (b[0] - a[0]) * (c[1] - b[1]) != (b[1] - a[1]) * (c[0] - b[0])
