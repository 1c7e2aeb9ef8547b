"""From boxes with small masks to pixels: one crop per cell, never an image per cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cellvision.errors import ConfigError, explain
from cellvision.runtime.detections.found import Detections


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskCrop:
    """The pixels of one cell, in a window that holds them all.

    Attributes:
        top, left: first row and column of the window, inside the image.
        mask: (h, w) bool; the window lies inside the image and may be 0 px high or wide.
    """

    top: int
    left: int
    mask: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """(rows, columns) of the window, to index the image with."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def crop_mask(probability: np.ndarray, box: np.ndarray, *, shape: tuple[int, int], threshold: float = 0.5) -> MaskCrop:
    """The pixels whose centres have a probability of at least ``threshold``, interpolated bilinearly over the box.

    Beyond the outermost samples the probability falls to 0 within one sample distance, as if the next one were 0.
    A threshold below 0.5 can therefore reach half a sample distance outside the box.

    Bilinear interpolation is separable: two small matrix products, whose rows hold the weights of the samples for one
    row (column) of pixels, replace the look-up of four samples per pixel. They are computed in double and compared in
    single precision, so that a mask of the threshold itself is whole however the weights were rounded.

    Args:
        probability: (M, M) floats in 0..1.
        box: (4,) left, top, right, bottom in px of the image; may leave it. One without an inside has no pixels.
        shape: (H, W) of the image.
        threshold: in (0, 1].

    Example:
        >>> crop = crop_mask(np.ones((28, 28)), np.array([1, 0, 3, 2]), shape=(5, 6))
        >>> image = np.zeros((5, 6), int); image[crop.window] = crop.mask; image[:3].tolist()
        [[0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    """
    left, top, right, bottom = (float(edge) for edge in box)
    first_row, down = _weigh_samples(top, bottom, samples=len(probability), pixels=shape[0])
    first_column, across = _weigh_samples(left, right, samples=len(probability), pixels=shape[1])
    values = down @ probability @ across.T
    return MaskCrop(top=first_row, left=first_column, mask=values.astype(np.float32) >= np.float32(threshold))


def _weigh_samples(start: float, stop: float, *, samples: int, pixels: int) -> tuple[int, np.ndarray]:
    """(first pixel, (n, samples) float64 weights) of the pixels that samples spread over start..stop can reach."""
    if not 0.0 < stop - start < np.inf:
        return 0, np.zeros((0, samples))
    reach = (stop - start) / (2 * samples)
    first = min(max(int(np.floor(start - reach - 0.5)), 0), pixels)
    last = max(min(int(np.ceil(stop + reach + 0.5)), pixels), first)
    place = (np.arange(first, last) + (0.5 - start)) * (samples / (stop - start)) - 0.5
    return first, np.maximum(1.0 - np.abs(place[:, None] - np.arange(samples)), 0.0)


def paint_detections(
    detections: Detections,
    *,
    shape: tuple[int, int],
    score_threshold: float,
    mask_threshold: float = 0.5,
    min_area_px: int = 1,
    min_visible: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """One label image of detections that overlap: each pixel belongs to one cell, the best that claims it.

    Detections are painted best ``rank_scores`` first (of equals, the first), and a pixel stays with the first. A
    detection of which less than ``min_visible`` of its own mask is still free is dropped as a whole, and its pixels
    stay free for those that follow: it is most likely the same cell again, under another class or in another box.
    What is painted keeps its holes and all its pieces: a cell that lies under a thin one really shows in two pieces,
    and scores compare masks, pieces included.

    Args:
        detections: boxes in px of this image.
        shape: (H, W) of the image.
        score_threshold: smallest rank score, in 0..1.
        mask_threshold: smallest probability of a cell's pixel, in (0, 1].
        min_area_px: detections with fewer visible pixels are dropped; 1 or more.
        min_visible: smallest share of its mask that must be free, in 0..1.

    Returns:
        (H, W) int32 label image, 0 = background, 1..N from the best to the worst; and (N,) int64, for each label the
        index of its detection.

    Raises:
        ConfigError: a threshold or size is out of range; the text names it.
    """
    _check_painting(score_threshold, mask_threshold, min_area_px, min_visible)
    label_image = np.zeros(shape, np.int32)
    ranks = detections.rank_scores
    order = np.argsort(-ranks, kind="stable")
    kept = paint_in_order(
        label_image,
        detections,
        order[ranks[order] >= score_threshold],
        mask_threshold=mask_threshold,
        min_area_px=min_area_px,
        min_visible=min_visible,
    )
    return label_image, kept


def paint_in_order(
    label_image: np.ndarray,
    detections: Detections,
    order: np.ndarray,
    *,
    mask_threshold: float,
    min_area_px: int,
    min_visible: float,
) -> np.ndarray:
    """Paint detections into an empty label image, those first that come first in ``order``; see `paint_detections`.

    Args:
        label_image: (H, W) int32 of zeros, which gets the labels 1..N; may be mapped from a file.
        detections: boxes in px of this image.
        order: (n,) integers, which detections, and in which order.
        mask_threshold: smallest probability of a cell's pixel, in (0, 1].
        min_area_px: detections with fewer visible pixels are dropped; 1 or more.
        min_visible: smallest share of its mask that must be free, in 0..1.

    Returns:
        (N,) int64, for each label the index of its detection.
    """
    kept: list[int] = []
    height, width = label_image.shape
    for index in order:
        crop = crop_mask(
            detections.masks[index], detections.boxes[index], shape=(height, width), threshold=mask_threshold
        )
        area = np.count_nonzero(crop.mask)
        if area < min_area_px:
            continue
        window = label_image[crop.window]
        free = crop.mask & (window == 0)
        visible = np.count_nonzero(free)
        if visible >= max(min_area_px, min_visible * area):
            kept.append(index)
            window[free] = len(kept)
    return np.array(kept, np.int64)


def _check_painting(score_threshold: float, mask_threshold: float, min_area_px: int, min_visible: float) -> None:
    for name, value, fits, need in (
        ("score_threshold", score_threshold, 0.0 <= score_threshold <= 1.0, "0 to 1"),
        ("mask_threshold", mask_threshold, 0.0 < mask_threshold <= 1.0, "above 0, at most 1"),
        ("min_area_px", min_area_px, min_area_px >= 1, "1 or more"),
        ("min_visible", min_visible, 0.0 <= min_visible <= 1.0, "0 to 1"),
    ):
        if not fits:
            raise ConfigError(explain(got=f"{name}={value}", need=need, hint="leave it out for the default"))


def encode_rle(crop: MaskCrop, shape: tuple[int, int]) -> dict[str, Any]:
    """A cell as COCO writes it: {"size": [H, W], "counts": compressed run lengths, column by column}.

    Time and memory grow with the window, not with the image.

    Args:
        crop: window inside the image; an empty mask is one run of background.
        shape: (H, W) of the image.

    Example:
        >>> encode_rle(MaskCrop(top=1, left=0, mask=np.array([[True, True]])), (3, 2))
        {'size': [3, 2], 'counts': '1120O'}
    """
    height, width = crop.mask.shape
    padded = np.zeros((width, height + 2), np.int8)
    padded[:, 1:-1] = crop.mask.T
    turns = np.diff(padded, axis=1)
    edges = []
    for turn in (1, -1):
        column, row = np.nonzero(turns == turn)
        edges.append((crop.left + column) * shape[0] + crop.top + row)
    # In a window as high as the image, the end of a column can be the start of the next; then it is neither.
    bounds, times = np.unique(np.concatenate(edges), return_counts=True)
    bounds = bounds[times == 1]
    runs = np.diff(bounds, prepend=0, append=shape[0] * shape[1])
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]
    packed = coco_mask.frPyObjects({"size": list(shape), "counts": runs}, *shape)
    return {"size": [int(shape[0]), int(shape[1])], "counts": packed["counts"].decode("ascii")}


def encode_detections(
    detections: Detections, *, shape: tuple[int, int], mask_threshold: float = 0.5
) -> list[dict[str, Any]]:
    """The whole mask of each detection in COCO's form, overlaps included, as average precision is computed from.

    Args:
        detections: boxes in px of this image.
        shape: (H, W) of the image.
        mask_threshold: smallest probability of a cell's pixel, in (0, 1].
    """
    return [
        encode_rle(crop_mask(mask, box, shape=shape, threshold=mask_threshold), shape)
        for mask, box in zip(detections.masks, detections.boxes, strict=True)
    ]
