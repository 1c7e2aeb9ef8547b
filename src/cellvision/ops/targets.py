"""What a net is asked to predict, computed from a label image (numpy only, so that worker processes stay light)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def compute_distance(label_image: np.ndarray) -> np.ndarray:
    """How deep inside its own cell every pixel lies: 1 at the core, towards 0 at the edge, 0 on background.

    The Euclidean distance to the nearest pixel that is not of the same cell, divided by the cell's largest such
    distance. Touching cells therefore sink towards each other where one transform of the whole foreground would not.

    The border of the image is no edge of a cell: what lies beyond is unknown, and a cell cut by the border keeps its
    core at the cut. Counting it as an edge would teach that cells end where tiles do.

    Args:
        label_image: (H, W) integers, 0 = background; gaps in numbering are fine.

    Returns:
        (H, W) float32 in 0..1; every pixel of a cell is above 0. A cell that fills the whole image is 1 everywhere.

    Example:
        >>> (3 * compute_distance(np.array([[0, 1, 1, 1, 1, 1, 0, 2]]))).round().tolist()
        [[0.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.0, 3.0]]
    """
    distance = np.zeros(label_image.shape, dtype=np.float32)
    for label, box in enumerate(ndimage.find_objects(label_image), start=1):
        if box is None:
            continue
        # One pixel more on each side: the nearest foreign pixel never lies beyond, so each cell can be done alone.
        window = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        cell = label_image[window] == label
        depth = np.ones(cell.shape) if cell.all() else ndimage.distance_transform_edt(cell)
        distance[window][cell] = (depth / depth.max())[cell]
    return distance
