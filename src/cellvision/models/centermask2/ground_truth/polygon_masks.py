"""True masks in the frame of a box, drawn from outlines by the rules of COCO."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


class PolygonMasks:
    """The masks of cells given by polygons, as the published training code draws them.

    On the CPU and one by one, therefore slower than LabelMasks; it is for exact comparison and for outlines that are
    finer than a pixel.
    """

    def __init__(self, polygons: Sequence[Sequence[np.ndarray]]) -> None:
        """Keep the outlines: for each cell one or more flat arrays x0, y0, x1, y1, ... in px, six numbers or more."""
        self.polygons = [[np.asarray(ring, dtype=np.float64) for ring in cell] for cell in polygons]

    def crop(self, boxes: Tensor, index: Tensor, side: int) -> Tensor:
        """(R, side, side) bool; see MaskTargets."""
        masks = np.zeros((len(boxes), side, side), dtype=bool)
        for region, (box, cell) in enumerate(self._pair(boxes, index)):
            scale = side / np.maximum(box[2:] - box[:2], 0.1)
            rings = [((ring.reshape(-1, 2) - box[:2]) * scale).ravel() for ring in cell]
            masks[region] = _draw(rings, side)
        return torch.from_numpy(masks).to(boxes.device)

    def inside_share(self, boxes: Tensor, index: Tensor) -> Tensor:
        """(R,) float32 in 0..1: pixels drawn inside the box by the area of the outlines; see MaskTargets."""
        shares = np.zeros(len(boxes))
        for region, (box, cell) in enumerate(self._pair(boxes, index)):
            width, height = (box[2:] - box[:2]).astype(int)
            total = sum(_compute_area(ring) for ring in cell)
            if width > 0 and height > 0 and total > 0:
                rings = [(ring.reshape(-1, 2) - box[:2]).ravel() for ring in cell]
                drawn = coco_mask.area(_outline(rings, int(height), int(width)))
                shares[region] = min(drawn.sum() / total, 1.0)
        return torch.from_numpy(shares.astype(np.float32)).to(boxes.device)

    def _pair(self, boxes: Tensor, index: Tensor) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        return [(box, self.polygons[cell]) for box, cell in zip(boxes.cpu().numpy(), index.tolist(), strict=True)]


def _outline(rings: Sequence[np.ndarray], height: int, width: int) -> list[dict[str, Any]]:
    """One COCO mask per ring."""
    outlined: list[dict[str, Any]] = coco_mask.frPyObjects([ring.tolist() for ring in rings], height, width)
    return outlined


def _draw(rings: Sequence[np.ndarray], side: int) -> np.ndarray:
    """(side, side) uint8, 1 inside any ring."""
    with warnings.catch_warnings():  # pycocotools 2.0.11 is behind numpy 2 in how it hands over its memory
        warnings.simplefilter("ignore", DeprecationWarning)
        drawn: np.ndarray = coco_mask.decode(coco_mask.merge(_outline(rings, side, side)))
    return drawn


def _compute_area(ring: np.ndarray) -> float:
    """Area in square px of a flat outline."""
    x, y = ring[0::2], ring[1::2]
    return 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
