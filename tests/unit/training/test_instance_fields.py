"""Predictions as separate cells, and the score from which they count."""

import numpy as np
import pytest

from cellvision.bundle import Splitting
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.score_threshold import fit_score_threshold
from cellvision.runtime.detections.cells import build_detected_cells
from cellvision.runtime.detections.found import Detections
from cellvision.training.instance_fields import (
    choose_cell_classes,
    fit_to_separate,
    limit_score,
)

SHAPE = (64, 64)
CLASSES = ("background", "live", "dead")
SPLITTING = Splitting(method="instances", min_area_px=9, min_visible=0.6)


def draw_detections(rng, count=40):
    corners = rng.uniform(0, 50, (count, 2))
    scores = rng.uniform(0.01, 0.99, (count, 2)).astype(np.float32)
    return Detections(
        boxes=np.concatenate([corners, corners + rng.uniform(4, 20, (count, 2))], axis=1).astype(np.float32),
        scores=scores.max(axis=1),
        mask_scores=None,
        class_id=scores.argmax(axis=1) + 1,
        class_scores=scores,
        masks=np.ones((count, 7, 7), np.float32),
    )


def find(detections, threshold):
    """The cells as they are delivered."""
    splitting = Splitting(method="instances", min_area_px=9, min_visible=0.6, score_threshold=threshold)
    image = np.zeros((1, *SHAPE), np.float32)
    return build_detected_cells(
        detections, image, splitting=splitting, classes=CLASSES, channels=("grey",), live_threshold=0.2
    )


def test_the_threshold_is_that_of_the_cells_as_delivered():
    """Tried at every score there is, in the runtime's own cells."""
    rng = np.random.default_rng(0)
    detections = [draw_detections(rng) for _ in range(3)]
    true_cells = [find(draw_detections(rng, count=12), 0.3) for _ in detections]
    for cells, found in zip(true_cells, detections, strict=True):  # something right, at scores in the middle
        boxes = cells.bbox[:, [1, 0, 3, 2]].astype(np.float32)[:8]
        found.boxes[: len(boxes)] = boxes
    truths = [InstanceField.from_label_image(cells.label_image, cells.class_id) for cells in true_cells]
    raw = [InstanceField.from_detections(found, shape=SHAPE, mask_threshold=0.5) for found in detections]
    fitted = fit_to_separate(raw, truths, SPLITTING)
    values = {}
    for score in np.unique(np.concatenate([found.scores for found in detections])).tolist():
        delivered = [InstanceField.from_cells(find(found, limit_score(score))) for found in detections]
        counts = fit_score_threshold(delivered, truths)
        # Going down no further than to the last cell delivered is the value of this threshold itself.
        if counts.threshold == min(field.score.min() for field in delivered if len(field)):
            values[counts.threshold] = counts.value
    assert fitted.value > 0
    assert max(values.values()) == pytest.approx(fitted.value)
    assert values[fitted.threshold] == pytest.approx(fitted.value)


def test_nothing_is_fitted_where_there_is_nothing_to_learn():
    found = InstanceField.from_detections(draw_detections(np.random.default_rng(1)), shape=SHAPE, mask_threshold=0.5)
    nothing = InstanceField.from_label_image(np.zeros(SHAPE, int), np.zeros(0, int))
    none_found = InstanceField.from_label_image(np.zeros(SHAPE, int), np.zeros(0, int), score=np.zeros(0))
    true = InstanceField.from_label_image(np.ones(SHAPE, int), np.array([1]))
    assert fit_to_separate([found], [nothing], SPLITTING) is None
    assert fit_to_separate([none_found], [true], SPLITTING) is None
    assert fit_to_separate([], [], SPLITTING) is None


def test_classes_are_those_of_the_delivered_cells():
    detections = draw_detections(np.random.default_rng(2), count=200)
    classes = choose_cell_classes(detections, CLASSES, live_threshold=0.2)
    assert (classes != detections.class_id).any()
    alone = [find(detections.take(np.array([i])), 0.005).class_id.tolist() for i in range(200)]
    expected = [found[0] for found in alone if found]
    assert [kind for kind, found in zip(classes.tolist(), alone, strict=True) if found] == expected
    assert len(expected) > 190


@pytest.mark.parametrize(("score", "limited"), [(0.0, 1e-6), (0.4, 0.4), (1.0, 1 - 1e-6)])
def test_thresholds_are_between_0_and_1(score, limited):
    assert limit_score(score) == limited
