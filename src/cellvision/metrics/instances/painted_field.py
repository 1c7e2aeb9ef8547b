"""Predictions that overlap as separate cells: painted as they are delivered, so that a file of them scores the same."""

from __future__ import annotations

import numpy as np

from cellvision.errors import ConfigError, DataError, explain
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.mask_runs import decode_masks

MIN_VISIBLE = 0.5
MIN_AREA_PX = 1


def paint_field(
    field: InstanceField, *, min_visible: float = MIN_VISIBLE, min_area_px: int = MIN_AREA_PX
) -> InstanceField:
    """The predicted cells of a field, no pixel in two of them, from the best score down.

    Painted like `paint_detections` paints what a net found: a pixel stays with the first that claims it, and a cell
    that keeps less than ``min_visible`` of its mask, or fewer than ``min_area_px`` pixels, is dropped as a whole. What
    is painted down to a score never depends on what comes after, so that this one painting serves every threshold:
    its cells of that score and better are those of a painting that stops there.

    Args:
        field: with scores; each cell gets its ``cell_class`` where the field has any.
        min_visible: smallest share of a mask that must be free, in 0..1.
        min_area_px: 1 or more.

    Raises:
        ConfigError: a share or size is out of range.
        DataError: the field has no scores.

    Example:
        >>> masks = [{"size": [1, 4], "counts": "13"}, {"size": [1, 4], "counts": "022"}]
        >>> found = InstanceField.from_rles(masks, shape=(1, 4), class_id=np.ones(2), score=np.array([0.9, 0.4]))
        >>> paint_field(found).areas.tolist(), paint_field(found, min_visible=0.6).areas.tolist()
        ([3.0, 1.0], [3.0])
    """
    check_painting(min_visible=min_visible, min_area_px=min_area_px)
    if field.score is None:
        raise DataError(explain(got="predicted cells without scores", need="one per cell", hint="np.ones(len(field))"))
    runs = decode_masks(field.rles, field.shape)
    pixels = np.zeros(field.shape[0] * field.shape[1], np.int32)
    bounds = np.searchsorted(runs.mask, np.arange(runs.count + 1))
    kept: list[int] = []
    for index in np.argsort(-field.score, kind="stable").tolist():
        runs_of_mask = slice(bounds[index], bounds[index + 1])
        start, end = runs.start[runs_of_mask], runs.end[runs_of_mask]
        own = _list_pixels(start, end)
        free = own[pixels[own] == 0]
        if len(free) >= max(min_area_px, min_visible * len(own)):
            kept.append(index)
            pixels[free] = len(kept)
    classes = field.class_id if field.cell_class is None else field.cell_class
    label_image = pixels.reshape(field.shape[::-1]).T
    return InstanceField.from_label_image(label_image, classes[kept], score=field.score[kept])


def check_painting(*, min_visible: float, min_area_px: int) -> None:
    """Raise ConfigError unless the share is in 0..1 and the area at least 1."""
    for name, value, fits, need, hint in (
        ("min_visible", min_visible, 0.0 <= min_visible <= 1.0, "a share from 0 to 1", f"--min-visible {MIN_VISIBLE}"),
        ("min_area_px", min_area_px, min_area_px >= 1, "a whole number from 1 up", f"--min-area-px {MIN_AREA_PX}"),
    ):
        if not fits:
            raise ConfigError(explain(got=f"{name}={value}", need=need, hint=hint))


def _list_pixels(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(n,) int64 numbers of the pixels in these runs."""
    lengths = end - start
    total = np.cumsum(lengths)
    return np.arange(total[-1] if total.size else 0) + np.repeat(start - (total - lengths), lengths)
