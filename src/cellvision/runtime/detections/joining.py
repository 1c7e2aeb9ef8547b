"""Detections found tile by tile become those of one image: none lost at a seam, none cut where another tile saw more.

A cell that two tiles see is found by both. Which of the two findings counts is not decided here: painting drops a
detection whose pixels are taken (see `paint_detections`), whichever tile it came from. What is decided here is who may
speak (the tile whose core the cell's middle lies in, or nearly so) and in which order: whole cells before those that
a window's side may have cut. A cell up to about twice ``overlap_px`` long is seen whole by the tile that its middle
lies in; of a longer one, each tile has found what it could see of it, and the best of those pieces counts, with what it
leaves free of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.nms import suppress_boxes
from cellvision.runtime.tiles.tiling import Span, Tile

CUT_PX = 2.0
"""A box that ends within so many px of a window's side may go on beyond it: boxes are not exact."""


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedDetections:
    """The detections of all tiles of an image, in the order of the tiles.

    Attributes:
        detections: N, boxes in px of the image.
        is_cut: (N,) bool, a side of the window that is no side of the image may have cut it.
        tile: (N,) int64, number of the tile that found it.
    """

    detections: Detections
    is_cut: np.ndarray
    tile: np.ndarray

    @property
    def order(self) -> np.ndarray:
        """(N,) int64 places, whole ones first, then the best first; of equals, the first."""
        return np.lexsort((-self.detections.rank_scores, self.is_cut))

    def drop_doubles(self, *, nms_iou: float) -> Detections:
        """The detections without those that another tile has found too, overlaps of different cells included.

        As within a tile, of two boxes of one class whose intersection over union is above ``nms_iou`` only the first
        in `order` is kept; those of one tile have been through that already.
        """
        order = self.order
        found = self.detections.take(order)
        return found.take(suppress_boxes(found.boxes, found.class_id, iou=nms_iou, group=self.tile[order]))


class DetectionPile:
    """Collects what the tiles of one image found."""

    def __init__(self, *, shape: tuple[int, int], overlap_px: int, least_score: float = 0.0) -> None:
        """Start for an image of ``shape`` (H, W); detections with a lower rank score are left out."""
        self._shape = shape
        self._overlap_px = overlap_px
        self._least_score = least_score
        self._fields: dict[str, list[np.ndarray | None]] = {}

    def add(self, tile: Tile, number: int, found: Detections) -> None:
        """Take in what tile ``number`` found, boxes in px of its window; tiles come in their order."""
        placed, is_cut = place_detections(found, tile, shape=self._shape, overlap_px=self._overlap_px)
        good = placed.rank_scores >= self._least_score
        fields = vars(placed.take(good)) | {"is_cut": is_cut[good], "tile": np.full(np.count_nonzero(good), number)}
        for name, values in fields.items():
            self._fields.setdefault(name, []).append(values)

    def join(self) -> JoinedDetections:
        """All of them; the pile is empty afterwards."""
        joined = {name: _concatenate(pieces) for name, pieces in self._fields.items()}
        self._fields = {}
        is_cut, tile = joined.pop("is_cut"), joined.pop("tile")
        assert is_cut is not None
        assert tile is not None
        return JoinedDetections(detections=Detections(**joined), is_cut=is_cut, tile=tile)  # type: ignore[arg-type]


def place_detections(
    found: Detections, tile: Tile, *, shape: tuple[int, int], overlap_px: int
) -> tuple[Detections, np.ndarray]:
    """The detections that a tile answers for, and which of them its window may have cut.

    Args:
        found: boxes in px of the tile's window.
        tile: where it lies; it answers for boxes whose middle lies in its core grown by ``overlap_px`` / 2, without end
            at the sides of the image.
        shape: (H, W) of the image.
        overlap_px: margin around a core.

    Returns:
        The detections, boxes in px of the image; and (n,) bool, whether a box ends within CUT_PX of a side of the
        window that is no side of the image, or beyond it.
    """
    origin = np.array([tile.columns.window_start, tile.rows.window_start] * 2, np.float32)
    boxes = found.boxes + origin
    held, is_cut = np.ones(len(found), bool), np.zeros(len(found), bool)
    for axis, span, length in ((0, tile.columns, shape[1]), (1, tile.rows, shape[0])):
        first, last = boxes[:, axis], boxes[:, axis + 2]
        held &= _is_near((first + last) / np.float32(2), span, length, overlap_px / 2)
        if span.window_start > 0:
            is_cut |= first <= span.window_start + CUT_PX
        if span.window_stop < length:
            is_cut |= last >= span.window_stop - CUT_PX
    return replace(found, boxes=boxes).take(held), is_cut[held]


def _is_near(middle: np.ndarray, span: Span, length: int, reach: float) -> np.ndarray:
    after = middle >= span.start - reach if span.start > 0 else np.ones(len(middle), bool)
    before = middle < span.stop + reach if span.stop < length else np.ones(len(middle), bool)
    return after & before


def _concatenate(pieces: list[np.ndarray | None]) -> np.ndarray | None:
    """All pieces in one array; each is let go as soon as it is copied, for masks are large."""
    arrays = [piece for piece in pieces if piece is not None]
    pieces.clear()
    if not arrays:
        return None
    joined = np.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    start = 0
    arrays.reverse()
    while arrays:
        piece = arrays.pop()
        joined[start : start + len(piece)] = piece
        start += len(piece)
    return joined
