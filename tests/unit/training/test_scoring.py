"""Which scores a net of a kind has."""

from dataclasses import replace

import numpy as np
import pytest

from cellvision.bundle import Splitting
from cellvision.models.base import NetSpec
from cellvision.runtime.detections.found import Detections
from cellvision.training.scoring import FieldPrediction, Scores, repaint_field

SPEC = NetSpec(
    name="centermask2", kind="instance", in_channels=1, classes=("background", "cell"), stride=32,
    outputs=("boxes",), tiles=False,
)  # fmt: skip


@pytest.fixture
def field():
    """A true cell, found."""
    true = np.zeros((32, 32), np.int32)
    true[4:24, 4:24] = 1
    detections = Detections(
        boxes=np.array([[4, 4, 24, 24]], np.float32), scores=np.array([0.9], np.float32), mask_scores=None,
        class_id=np.array([1]), class_scores=np.array([[0.9]], np.float32), masks=np.ones((1, 7, 7), np.float32),
    )  # fmt: skip
    foreground = (true > 0).astype(np.float32)
    found = FieldPrediction(
        name="a", image=true[None].astype(np.float32), true_class_map=(true > 0).astype(np.int64),
        true_label_image=true, true_cell_classes=np.array([1]), probabilities=np.stack([1 - foreground, foreground]),
        cells=None, detections=detections,
    )  # fmt: skip
    return repaint_field(SPEC, found, splitting=Splitting(method="instances"), live_threshold=0.5)


def test_curves_of_masks_tell_the_recall_at_a_score(field):
    two = np.where(np.arange(32)[:, None] < 14, field.true_label_image, 2 * (field.true_label_image > 0))
    detections = replace(
        field.detections,
        boxes=np.array([[4, 4, 24, 14], [4, 14, 24, 24]], np.float32),
        scores=np.array([0.9, 0.3], np.float32),
        class_id=np.array([1, 1]),
        class_scores=np.array([[0.9], [0.3]], np.float32),
        masks=np.ones((2, 7, 7), np.float32),
    )
    scores = Scores(SPEC, mask_threshold=0.5)
    scores.update(replace(field, true_label_image=two, true_cell_classes=np.array([1, 1]), detections=detections))
    for threshold, recall in ((0.95, 0.0), (0.5, 0.5), (0.2, 1.0)):
        curves = scores.curves(threshold)
        assert curves["mask, cell"].chosen_recall == recall
        assert curves["box, cell"].chosen_recall is None
        assert curves["mask, cell"].precision.tolist() == [pytest.approx(1.0)] * 101


def test_only_probabilities_of_pixels_have_a_curve(field):
    for outputs, has_curve in ((("boxes",), False), (("boxes", "probabilities"), True)):
        scores = Scores(replace(SPEC, outputs=outputs), mask_threshold=0.5)
        scores.update(field)
        found = scores.compute()
        assert ("pixel/auroc_foreground" in found) == has_curve
        assert found["pixel/miou"] > 0.9
        assert found["instance/true_count"] == 1
