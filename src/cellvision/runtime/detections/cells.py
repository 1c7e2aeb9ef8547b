"""The cells that an instance net found: overlaps resolved, measured, in the record that all nets share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cellvision.bundle import Splitting
from cellvision.runtime.cells import Cells, build_cells, choose_classes
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.masks import paint_detections
from cellvision.runtime.maps.splitting import CellSums, measure_cells


def build_detected_cells(
    detections: Detections,
    image: np.ndarray,
    *,
    splitting: Splitting,
    classes: tuple[str, ...],
    channels: tuple[str, ...],
    live_threshold: float | None = None,
    pixel_size_um: float | None = None,
) -> Cells:
    """The record of the cells that an instance net found, numbered from the best score down.

    What overlaps is resolved by `paint_detections`; area, centroid, box and intensities are of the visible pixels. The
    probabilities of a cell are its class scores divided by their sum (those scores are not exclusive, so the sum can
    be anything); where all of them are 0, its own class gets 1.

    Args:
        detections: boxes in px of this image.
        image: (C, H, W) raw counts.
        splitting: score_threshold, foreground_threshold (for the masks), min_visible and min_area_px are looked at.
        classes: background first.
        channels: names, one per channel of ``image``.
        live_threshold: in 0..1; a cell is live where P(live) reaches it, else dead. None keeps the class of the
            detection, as must be with other classes than live and dead.
        pixel_size_um: of the image, or None.
    """
    label_image, kept = paint_detections(
        detections,
        shape=(image.shape[1], image.shape[2]),
        score_threshold=splitting.score_threshold,
        mask_threshold=splitting.foreground_threshold,
        min_area_px=splitting.min_area_px,
        min_visible=splitting.min_visible,
    )
    found = detections.take(kept)
    sums = measure_cells(label_image, image, None, count=len(found))
    return build_painted_cells(
        found,
        sums,
        classes=classes,
        channels=channels,
        live_threshold=live_threshold,
        shape=label_image.shape,
        label_image=label_image,
        pixel_size_um=pixel_size_um,
    )


def build_painted_cells(
    found: Detections,
    sums: CellSums,
    *,
    classes: tuple[str, ...],
    channels: tuple[str, ...],
    live_threshold: float | None,
    shape: tuple[int, int],
    label_image: np.ndarray | None,
    pixel_size_um: float | None,
) -> Cells:
    """The record of detections that are painted and measured: row i of ``found`` and ``sums`` is of label i + 1.

    Args:
        found: one detection per cell; its masks are not looked at.
        sums: of the visible pixels of each cell; its probabilities are not looked at.
        classes: background first.
        channels: names, one per channel in ``sums``.
        live_threshold: see `build_detected_cells`.
        shape: (H, W) of the image.
        label_image: (H, W) int32, or None where it is in a file.
        pixel_size_um: of the image, or None.
    """
    probabilities = normalise_scores(found.class_scores, found.class_id)
    cells = build_cells(
        replace(sums, probability=probabilities * sums.area[:, None]),
        classes=classes,
        channels=channels,
        kind="instance",
        live_threshold=0.5,
        shape=shape,
        label_image=label_image,
        pixel_size_um=pixel_size_um,
    )
    class_id = choose_detected_classes(found, classes, live_threshold)
    return replace(cells, probabilities=probabilities, class_id=class_id, score=found.rank_scores.astype(np.float64))


def choose_detected_classes(found: Detections, classes: tuple[str, ...], live_threshold: float | None) -> np.ndarray:
    """(N,) int64 class ids 1..K-1 of detections; see `build_detected_cells`."""
    if live_threshold is None:
        return found.class_id.astype(np.int64)
    return choose_classes(normalise_scores(found.class_scores, found.class_id), classes, live_threshold)


def normalise_scores(class_scores: np.ndarray, class_id: np.ndarray) -> np.ndarray:
    """(N, K - 1) class scores scaled so that each row has sum 1, float64.

    Where all scores are 0, the class of the cell (``class_id``, (N,), 1..K-1) gets 1.
    """
    scores = class_scores.astype(np.float64)
    none = scores.sum(axis=1) <= 0.0
    scores[none, class_id[none] - 1] = 1.0
    return scores / scores.sum(axis=1, keepdims=True)
