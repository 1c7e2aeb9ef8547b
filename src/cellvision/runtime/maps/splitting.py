"""Probability maps become separate cells, and cells become numbers that can be added up across tiles."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from cellvision.bundle import Splitting
from cellvision.errors import BundleError, explain


def split_cells(probabilities: np.ndarray, distance: np.ndarray | None, *, splitting: Splitting) -> np.ndarray:
    """Label image of the separate cells, (H, W) int32, numbered 1..N in raster order of their first pixel.

    A pixel belongs to a cell where 1 - P(background) reaches the foreground threshold. With ``method="distance"``
    each connected core (distance map at or above the seed threshold) floods its surroundings downhill, so that
    touching cells part at the saddle between their cores; foreground that no core reaches is one cell per connected
    region. With ``method="components"`` every connected region is a cell. Pixels are connected over their edges, not
    over corners, in all of these steps. The same input gives the same labels.

    Args:
        probabilities: (K, H, W) float32 in 0..1, background first.
        distance: (H, W) float32 in 0..1, 1 at a cell's core; not looked at by ``method="components"``.
        splitting: thresholds and smallest sizes.

    Raises:
        BundleError: ``method="distance"`` without a distance map.

    Example:
        >>> cell = np.zeros((1, 5), np.float32); cell[0, 1:3] = 0.9
        >>> split_cells(np.stack([1 - cell, cell]), None, splitting=Splitting(method="components", min_area_px=2))
        array([[0, 1, 1, 0, 0]], dtype=int32)
    """
    foreground = 1.0 - probabilities[0] >= splitting.foreground_threshold
    if splitting.method == "components":
        cells, _ = ndimage.label(foreground)
    elif distance is None:
        raise BundleError(
            explain(
                got="splitting.method='distance' with a graph that has no output 'distance'",
                need="that output",
                hint="splitting.method=components",
            )
        )
    else:
        cells = _flood(distance, foreground, splitting)
    return _keep_large(cells, splitting.min_area_px)


def _flood(distance: np.ndarray, foreground: np.ndarray, splitting: Splitting) -> np.ndarray:
    seeds, count = ndimage.label(foreground & (distance >= splitting.seed_threshold))
    seeds[np.bincount(seeds.ravel(), minlength=count + 1)[seeds] < splitting.min_seed_px] = 0
    cells = watershed(-distance, seeds, mask=foreground) if seeds.any() else seeds
    alone, _ = ndimage.label(foreground & (cells == 0))
    return np.where(alone > 0, alone + count, cells)


def _keep_large(cells: np.ndarray, min_area_px: int) -> np.ndarray:
    """The same regions without the small ones, renumbered 1..N in raster order."""
    flat = cells.ravel()
    inside = np.flatnonzero(flat)
    first = find_first_pixels(flat[inside], inside, int(flat.max(initial=0)))
    area = np.bincount(flat, minlength=first.size + 1)[1:]
    kept = np.flatnonzero(area >= min_area_px)
    table = np.zeros(first.size + 1, np.int32)
    table[kept[np.argsort(first[kept])] + 1] = np.arange(1, kept.size + 1)
    return table[cells]


def find_first_pixels(labels: np.ndarray, positions: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64: smallest position of each label 1..count; the largest int64 for a label that does not occur.

    Args:
        labels: (P,) integers 1..count.
        positions: (P,) ascending integers.
        count: largest label.
    """
    first = np.full(count + 1, np.iinfo(np.int64).max)
    first[labels[::-1]] = positions[::-1]  # of several writes to one place the last one stays
    return first[1:]


@dataclass(frozen=True, kw_only=True, eq=False)
class CellSums:
    """What is known of each of N labels as sums and extremes, so that pieces of a cell can be added up.

    Attributes:
        area: (N,) int64, pixels; 0 for a label that does not occur.
        sum_y, sum_x: (N,) float64, of pixel coordinates in the whole image.
        first: (N,) int64, smallest y * image width + x.
        top, left: (N,) int64, smallest row and column; largest int64 where area is 0.
        bottom, right: (N,) int64, largest row and column plus one; 0 where area is 0.
        intensity: (N, C) float64, sums of the raw counts.
        probability: (N, K-1) float64, sums of P(class) / P(any foreground class).
    """

    area: np.ndarray
    sum_y: np.ndarray
    sum_x: np.ndarray
    first: np.ndarray
    top: np.ndarray
    left: np.ndarray
    bottom: np.ndarray
    right: np.ndarray
    intensity: np.ndarray
    probability: np.ndarray


def measure_cells(
    label_image: np.ndarray,
    image: np.ndarray,
    probabilities: np.ndarray | None,
    *,
    count: int | None = None,
    origin: tuple[int, int] = (0, 0),
    image_width: int | None = None,
) -> CellSums:
    """Sums over the pixels of each label 1..count; time grows with pixels, not with cells.

    Args:
        label_image: (H, W) int32, 0 = background.
        image: (C, H, W) raw counts.
        probabilities: (K, H, W) float32, background first; None where no pixel has any, for sums of no class.
        count: number of labels; None takes the largest that occurs.
        origin: (top, left) of this piece in the whole image.
        image_width: of the whole image; None where this piece is the whole image.

    Example:
        >>> sums = measure_cells(np.array([[0, 1, 1]]), np.array([[[9, 2, 4]]]), np.full((2, 1, 3), 0.5, np.float32))
        >>> sums.area, sums.intensity / sums.area[:, None], sums.sum_x / sums.area
        (array([2]), array([[3.]]), array([1.5]))
    """
    flat = label_image.ravel()
    inside = np.flatnonzero(flat)
    labels = flat[inside]
    count = int(flat.max(initial=0)) if count is None else count
    y, x = inside // label_image.shape[1] + origin[0], inside % label_image.shape[1] + origin[1]
    width = label_image.shape[1] if image_width is None else image_width
    top, bottom = _find_extremes(labels, y, count)
    left, right = _find_extremes(labels, x, count)
    shares = np.zeros((0, inside.size))
    if probabilities is not None:
        shares = probabilities[1:].reshape(len(probabilities) - 1, -1)[:, inside].astype(np.float64)
    shares /= np.maximum(shares.sum(axis=0), 1e-12)  # a class map may call a pixel foreground at P = 0 after rounding
    return CellSums(
        area=np.bincount(labels, minlength=count + 1)[1:],
        sum_y=_sum_by(labels, y, count),
        sum_x=_sum_by(labels, x, count),
        first=find_first_pixels(labels, y * width + x, count),
        top=top,
        left=left,
        bottom=bottom,
        right=right,
        intensity=_sum_planes(labels, image.reshape(len(image), -1)[:, inside], count),
        probability=_sum_planes(labels, shares, count),
    )


def merge_sums(pieces: list[CellSums], cell_of: np.ndarray, count: int) -> CellSums:
    """Sums of whole cells from the sums of their pieces.

    Args:
        pieces: of one or more `measure_cells` calls; all their labels in order are the pieces 1..M.
        cell_of: (M,) integers 1..count, the cell each piece belongs to.
        count: number of cells N.
    """
    joined = {f.name: np.concatenate([getattr(piece, f.name) for piece in pieces]) for f in fields(CellSums)}
    merged: dict[str, np.ndarray] = {"area": _sum_by(cell_of, joined["area"], count).astype(np.int64)}
    for name in ("sum_y", "sum_x"):
        merged[name] = _sum_by(cell_of, joined[name], count)
    for name in ("intensity", "probability"):
        merged[name] = _sum_planes(cell_of, joined[name].T, count)
    for name, take, start in (
        ("first", np.minimum, np.iinfo(np.int64).max),
        ("top", np.minimum, np.iinfo(np.int64).max),
        ("left", np.minimum, np.iinfo(np.int64).max),
        ("bottom", np.maximum, 0),
        ("right", np.maximum, 0),
    ):
        merged[name] = np.full(count, start, np.int64)
        take.at(merged[name], cell_of - 1, joined[name])
    return CellSums(**merged)


def _find_extremes(labels: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(smallest, largest plus one) value of each label 1..count."""
    low, high = np.full(count, np.iinfo(np.int64).max), np.zeros(count, np.int64)
    np.minimum.at(low, labels - 1, values)
    np.maximum.at(high, labels - 1, values + 1)
    return low, high


def _sum_by(labels: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(labels, weights=values, minlength=count + 1)[1:]


def _sum_planes(labels: np.ndarray, planes: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, len(planes)))
    for index, plane in enumerate(planes):
        sums[:, index] = _sum_by(labels, plane, count)
    return sums
