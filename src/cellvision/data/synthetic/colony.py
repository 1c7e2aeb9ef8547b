"""Dense cells: where they grow, how many exactly, and which pixel belongs to whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from cellvision.data.synthetic.phantom import draw_outline, find_overlap

LEAST_PX = 12
"""Area of ground that a cell needs at least, so that every one of a crowded field has pixels of its own."""

_ROUGHNESS = 0.08
_ROUNDS = 3
_SAMPLES_PER_CELL = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Colony:
    """Cells that may touch but not overlap.

    Attributes:
        label_image: (H, W) int32, 0 = background, 1..N; every label has pixels and is one 4-connected region.
        depth: (H, W) float32, how far towards its cell's outline a pixel lies: 0 at the centre, 1 at the outline and
            outside. A cell that a neighbour cuts off ends before 1.
    """

    label_image: np.ndarray
    depth: np.ndarray


def grow_colony(
    rng: np.random.Generator, *, radii_px: np.ndarray, stretches: np.ndarray, packing: float, height: int, width: int
) -> Colony:
    """Grow exactly as many cells as there are radii.

    Cells grow in islands of which they cover the share ``packing``, or all over the field where they need the room;
    where that is not enough, all are made smaller alike. Neighbours that would overlap meet where each is as near to
    its own outline, so that they touch along a border.

    Args:
        rng: source of all chance.
        radii_px: (N,) mean radius of each cell before others cut it.
        stretches: (N,) greatest ratio of length to width of each cell, at least 1.
        packing: share of the ground that cells cover, nominally, above 0 and up to about 1.
        height: of the field in px; the field has at least N * LEAST_PX pixels.
        width: as ``height``.
    """
    needed = float(np.pi * np.sum(np.square(radii_px))) / packing
    share = needed / (height * width)
    radii = radii_px / np.sqrt(max(1.0, share))
    ground = _draw_ground(rng, max(share, len(radii) * LEAST_PX / (height * width)), height=height, width=width)
    centres = _spread_centres(rng, ground, len(radii))
    labels = np.zeros((height, width), np.int32)
    depth = np.ones((height, width), np.float32)
    for label, ((y, x), radius, stretch) in enumerate(zip(centres, radii, stretches, strict=True), start=1):
        side = 2 * int(np.ceil(1.7 * radius)) + 3
        dy, dx = np.mgrid[:side, :side].astype(np.float32) - np.float32(side // 2)
        rho = draw_outline(rng, dy, dx, radius=radius, roughness=_ROUGHNESS, stretch=stretch)
        field_part, part = find_overlap(side, y, x, height=height, width=width)
        own = rho[part] < depth[field_part]
        depth[field_part][own] = rho[part][own]
        labels[field_part][own] = label
    _drop_fragments(labels, depth, centres)
    return Colony(label_image=labels, depth=depth)


def _draw_ground(rng: np.random.Generator, share: float, *, height: int, width: int) -> np.ndarray:
    """(H, W) bool: islands of the field that cover this share of it; all of it from nine tenths up."""
    noise = ndimage.gaussian_filter(rng.standard_normal((height, width), dtype=np.float32), min(height, width) / 10)
    return noise >= np.quantile(noise, max(0.0, 1 - share)) if share < 0.9 else np.ones((height, width), bool)


def _spread_centres(rng: np.random.Generator, ground: np.ndarray, count: int) -> np.ndarray:
    """(N, 2) int64 different pixels, rather evenly spread over the ground: each in the middle of what is nearest to it.

    A few rounds only: many would end in honeycombs.
    """
    pixels = np.argwhere(ground)
    pool = rng.permutation(pixels)[: max(count * _SAMPLES_PER_CELL, 1)]
    centres = pool[:count].astype(np.float64)
    for _ in range(_ROUNDS if count else 0):
        nearest = cKDTree(centres).query(pool)[1]
        members = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, weights=pool[:, axis], minlength=count) for axis in (0, 1)], axis=1)
        centres = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], centres)
    different = np.unique(np.rint(centres).astype(np.int64).reshape(-1, 2), axis=0)
    taken = set(map(tuple, different.tolist()))
    spare = [pixel for pixel in pool[::-1].tolist() if tuple(pixel) not in taken][: count - len(different)]
    return rng.permutation(np.concatenate([different, np.array(spare, np.int64).reshape(-1, 2)]))


def _drop_fragments(labels: np.ndarray, depth: np.ndarray, centres: np.ndarray) -> None:
    """Turn parts of cells that a neighbour has cut from their centre into background, in place."""
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        assert box is not None, "a cell keeps its centre, where no other is as deep"
        parts, count = ndimage.label(labels[box] == label)
        if count > 1:
            y, x = centres[label - 1]
            lost = (parts > 0) & (parts != parts[y - box[0].start, x - box[1].start])
            labels[box][lost] = 0
            depth[box][lost] = 1.0
