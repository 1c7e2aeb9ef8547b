"""COCO segmentations (polygons and both forms of RLE) as runs of pixels, and runs painted into a label image.

A run-length list counts pixels column by column: background, cell, background, cell ...; painting runs costs time by
the cell's size, not by the image's, which matters with 3000 cells in a field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cellvision.data.coco.tables import show

OVERLAPS = ("first", "smallest")

OUTSIDE_PX = 1.0
"""How far a polygon may leave its image; tracing tools round, and pycocotools cuts the rest off."""


def find_fault(segmentation: Any, *, height: int, width: int) -> str | None:
    """What is wrong with a segmentation, in a few words, or None."""
    if isinstance(segmentation, list):
        if not segmentation:
            return "empty segmentation"
        faults = (_find_polygon_fault(polygon, height, width) for polygon in segmentation)
        if fault := next((fault for fault in faults if fault), None):
            return fault
        # Painting takes less time than any test of the shape that would tell which ones need no painting.
        return None if _has_pixel(segmentation, height, width) else "polygons without a pixel"
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "segmentation is neither polygons nor RLE"
    if segmentation["size"] != [height, width]:
        return f"RLE of size {show(segmentation['size'])} in an image of {[height, width]}"
    try:
        runs = _read_runs(segmentation["counts"])
    except (TypeError, ValueError, OverflowError):
        return "RLE counts cannot be read"
    # Single runs are bounded first, so that their sum cannot overflow into the right one.
    if not len(runs) or runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        return f"RLE counts do not add up to {height * width} pixels"
    return None if runs[1::2].any() else "RLE without a pixel"


def compute_runs(segmentation: Any, *, height: int, width: int) -> np.ndarray:
    """Run lengths, int64, column by column, background first, of a segmentation without fault.

    Example:
        >>> compute_runs([[1, 0, 2, 0, 2, 2, 1, 2]], height=2, width=3)
        array([2, 2, 2])
    """
    if isinstance(segmentation, dict):
        return _read_runs(segmentation["counts"])
    merged = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return _decompress(merged["counts"])


def paint_cells(runs_per_cell: Iterable[tuple[int, np.ndarray]], *, height: int, width: int) -> np.ndarray:
    """(H, W) int32 label image; a pixel claimed twice stays with the cell painted first.

    Args:
        runs_per_cell: (label, run lengths), in the order of painting.
        height: of the image in px.
        width: of the image in px.
    """
    columns = np.zeros(height * width, np.int32)
    for label, runs in runs_per_cell:
        ends = np.cumsum(runs)[1::2]
        lengths = runs[1::2][: len(ends)]
        # All pixel numbers of all runs at once: a counter that jumps at the start of each run.
        offsets = np.repeat(ends - np.cumsum(lengths), lengths)
        pixels = offsets + np.arange(len(offsets))
        columns[pixels[columns[pixels] == 0]] = label
    return np.ascontiguousarray(columns.reshape(width, height).T)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What cells of a field lose to each other, because a pixel of a label image belongs to one cell.

    Attributes:
        claimed_px: pixels of all cells, those claimed twice counted twice; crowd regions are not counted.
        lost_px: how many of these went to another cell.
        hidden_cells: cells without any pixel left.
    """

    claimed_px: int
    lost_px: int
    hidden_cells: int


def order_cells(runs: Sequence[np.ndarray], is_crowd: Sequence[bool], *, overlap: str) -> list[int]:
    """Positions of the cells in the order of painting, crowd regions last.

    Args:
        runs: run lengths of each cell.
        is_crowd: whether each is a crowd region.
        overlap: "first" paints in the given order, "smallest" by area, so that the smallest lies on top.
    """
    areas = [int(one[1::2].sum()) if overlap == "smallest" else 0 for one in runs]
    return sorted(range(len(runs)), key=lambda i: (is_crowd[i], areas[i]))  # sorted() keeps the order else


def count_overlap(label_image: np.ndarray, runs: Sequence[np.ndarray], is_crowd: Sequence[bool]) -> Overlap:
    """What the cells painted into ``label_image`` (label i + 1 is cell i) have lost."""
    claimed = np.array([one[1::2].sum() for one in runs], np.int64)
    left = np.bincount(label_image.ravel(), minlength=len(runs) + 1)[1:]
    cell = ~np.array(is_crowd, dtype=bool)
    return Overlap(
        claimed_px=int(claimed[cell].sum()),
        lost_px=int((claimed - left)[cell].sum()),
        hidden_cells=int(np.count_nonzero(left[cell] == 0)),
    )


def _find_polygon_fault(polygon: Any, height: int, width: int) -> str | None:
    try:
        numbers = np.asarray(polygon)
    except ValueError:
        return "polygon with something else than numbers"
    # numpy makes no float of whole numbers over 64 bits, and none of text or null unless it is asked to.
    if numbers.dtype.kind not in "iuf":
        return "polygon with something else than numbers"
    if numbers.ndim != 1 or len(numbers) < 6:
        return f"polygon of {numbers.size} numbers"
    if len(numbers) % 2:
        return f"polygon of {len(numbers)} numbers, which is odd"
    if not np.isfinite(numbers).all():
        return "polygon with NaN or infinity"
    x, y = numbers[0::2], numbers[1::2]
    low = min(x.min(), y.min())
    if low < -OUTSIDE_PX or x.max() > width + OUTSIDE_PX or y.max() > height + OUTSIDE_PX:
        return f"polygon outside its image (x {x.min():g}..{x.max():g}, y {y.min():g}..{y.max():g})"
    return None


def _has_pixel(polygons: Sequence[Sequence[float]], height: int, width: int) -> bool:
    return bool(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))))


def _read_runs(counts: Any) -> np.ndarray:
    if isinstance(counts, str | bytes):
        return _decompress(counts.encode("ascii") if isinstance(counts, str) else counts)
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu":
        raise ValueError("counts are not whole numbers")
    return runs.astype(np.int64)


def _decompress(counts: bytes) -> np.ndarray:
    """Run lengths from COCO's text form: 5 bits a character, low bits first, from the fourth on as differences.

    Written here because pycocotools' own decoder trusts the text, and paints whole images only.
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("not compressed RLE")
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 12:
        raise ValueError("a run over 60 bits")
    place = np.arange(len(digits)) - np.repeat(first, lengths)
    values = np.add.reduceat((digits & 31) << (5 * place), first)
    values -= np.where(digits[last] & 16, np.int64(1) << (5 * lengths), 0)
    # Run i is stored as its difference from run i - 2, but the first three as they are.
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return runs
