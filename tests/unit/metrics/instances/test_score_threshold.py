"""Oracle: every threshold tried."""

import numpy as np
import pytest

from cellvision.errors import ConfigError, DataError, ShapeError
from cellvision.metrics.instances import score_threshold as module
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import compute_overlaps, join_overlaps
from cellvision.metrics.instances.score_threshold import OBJECTIVES, fit_score_threshold
from cellvision.metrics.instances.scores import compute_instance_scores
from crowded_fields import draw_coco, to_fields


def draw_scored(seed):
    """Fields whose surer predictions are better."""
    truth, predictions = draw_coco(seed, crowd=0.1, cells=25)
    rng = np.random.default_rng(seed)
    best = {}
    for pred, true in to_fields(truth, predictions):
        found = compute_overlaps(pred, true)
        best[len(best)] = np.zeros(len(pred))
        np.maximum.at(best[len(best) - 1], found.pred, found.compute_mask_iou())
    fields = []
    for number, (pred, true) in enumerate(to_fields(truth, predictions)):
        score = (best[number] + rng.normal(0, 0.15, len(pred))).clip(0, 1).round(2)
        fields.append((InstanceField.from_rles(pred.rles, shape=pred.shape, class_id=pred.class_id, score=score), true))
    return fields


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_is_better(seed, objective):
    pairs = draw_scored(seed)
    found = fit_score_threshold(*zip(*pairs, strict=True), objective=objective)
    overlaps = join_overlaps([compute_overlaps(pred, truth) for pred, truth in pairs])
    scores = np.unique(np.concatenate([pred.score for pred, _ in pairs]))
    values = []
    for threshold in scores:
        result = compute_instance_scores(overlaps, score_threshold=threshold).to_dict()
        values.append(result[f"instance/{objective}"])
    best = np.flatnonzero(np.isclose(values, max(values), rtol=1e-12))[-1]
    assert found.value == pytest.approx(max(values), rel=1e-12)
    assert found.threshold == scores[best]
    assert 0 < best < len(scores) - 1


def test_many_scores_are_thinned_out(monkeypatch):
    pairs = draw_scored(0)
    exact = fit_score_threshold(*zip(*pairs, strict=True), objective="kaggle_map")
    monkeypatch.setattr(module, "_MOST_CANDIDATES", 12)
    coarse = fit_score_threshold(*zip(*pairs, strict=True), objective="kaggle_map")
    assert 0.8 * exact.value < coarse.value <= exact.value


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_many_scores_of_false_cells_do_not_blur_the_threshold(objective):
    """19 of 20 predictions find nothing and are of lower scores, as of a net that keeps all of its boxes."""
    rng = np.random.default_rng(0)
    truth_image, pred_image = np.zeros((2, 240, 240), np.int32)
    labels = np.arange(1, 101).reshape(10, 10)
    for row, column in np.ndindex(10, 10):
        truth_image[row * 8 : row * 8 + 5, column * 8 : column * 8 + 5] = labels[row, column]
    pred_image[:80, :80] = truth_image[:80, :80]
    pred_image[100:195:2, 0:240:4].flat = np.arange(101, 101 + 48 * 60)
    scores = np.concatenate([rng.uniform(0.2, 0.9, 100), rng.uniform(0.0, 0.3, 48 * 60)])
    truth = InstanceField.from_label_image(truth_image, np.ones(100, int))
    pred = InstanceField.from_label_image(pred_image, np.ones(len(scores), int), score=scores)
    found = fit_score_threshold([pred], [truth], objective=objective)
    overlaps = join_overlaps([compute_overlaps(pred, truth)])
    values = [
        compute_instance_scores(overlaps, score_threshold=threshold).to_dict()[f"instance/{objective}"]
        for threshold in scores[:100]
    ]
    assert found.value == pytest.approx(max(values), rel=1e-12)
    assert found.threshold == scores[int(np.argmax(values))]


def test_nothing_to_choose_by():
    (pred, truth), *_ = draw_scored(1)
    nobody = InstanceField.from_rles([], shape=pred.shape, class_id=np.zeros(0, int), score=np.zeros(0))
    with pytest.raises(DataError, match=f"0 predicted and {(~truth.ignored).sum()} true cells; need some of both"):
        fit_score_threshold([nobody], [truth])
    with pytest.raises(ShapeError, match="predictions of 1 fields and truth of 0"):
        fit_score_threshold([pred], [])
    with pytest.raises(ConfigError, match="unknown objective 'f2'"):
        fit_score_threshold([pred], [truth], objective="f2")
