"""What was found in a field in the form that instance scores compare."""

from __future__ import annotations

import numpy as np

from cellvision.metrics.instance_field import InstanceField
from cellvision.runtime.cells import Cells
from cellvision.runtime.detections import Detections
from cellvision.runtime.masks import encode_detections


def to_separate_field(cells: Cells) -> InstanceField:
    """The separate cells, no pixel in two of them; all of score 1 where the net gives none."""
    assert cells.label_image is not None
    score = np.ones(len(cells)) if cells.score is None else cells.score
    return InstanceField.from_label_image(cells.label_image, cells.class_id, score=score)


def to_found_field(detections: Detections, *, shape: tuple[int, int], mask_threshold: float) -> InstanceField:
    """All that a net found, low scores and overlaps too, as average precision wants them.

    Args:
        detections: boxes in px of the field.
        shape: (H, W) of the field.
        mask_threshold: smallest probability of a cell's pixel, in (0, 1].
    """
    height, width = shape
    return InstanceField.from_rles(
        encode_detections(detections, shape=shape, mask_threshold=mask_threshold),
        shape=shape,
        class_id=detections.class_id,
        score=detections.rank_scores,
        box_score=detections.scores,
        boxes=detections.boxes.clip(0, [width, height, width, height]),
    )
