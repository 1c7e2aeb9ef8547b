import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import mannwhitneyu
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from cellvision.errors import DataError, ShapeError
from cellvision.metrics.semantic import (
    compute_auroc,
    compute_binned_auroc,
    compute_confusion,
    compute_semantic_scores,
    drop_undefined,
)

K = 4


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(1)
    truth = rng.choice([0, 1, 2, 3, 255], size=(40, 50), p=[0.5, 0.3, 0.1, 0.05, 0.05])
    noise = rng.integers(0, K, truth.shape)
    pred = np.where(rng.random(truth.shape) < 0.6, np.where(truth == 255, 0, truth), noise)
    return pred, truth


def test_scores_equal_those_of_torchmetrics(maps):
    pred, truth = maps
    p, t = torch.tensor(pred), torch.tensor(truth)
    confusion = compute_confusion(pred, truth, K)
    np.testing.assert_array_equal(confusion, multiclass_confusion_matrix(p, t, K, ignore_index=255))
    scores = compute_semantic_scores(confusion)
    options = {"num_classes": K, "ignore_index": 255}
    for ours, theirs in (
        (scores.iou, multiclass_jaccard_index(p, t, average="none", **options)),
        (scores.dice, multiclass_f1_score(p, t, average="none", **options)),
        (scores.precision, multiclass_precision(p, t, average="none", **options)),
        (scores.recall, multiclass_recall(p, t, average="none", **options)),
        (scores.miou, multiclass_jaccard_index(p, t, average="macro", **options)),
        (scores.mean_dice, multiclass_f1_score(p, t, average="macro", **options)),
        (scores.accuracy, multiclass_accuracy(p, t, average="micro", **options)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_foreground_is_every_class_but_the_first(maps):
    pred, truth = maps
    known = truth != 255
    p, t = (pred > 0)[known], (truth > 0)[known]
    scores = compute_semantic_scores(compute_confusion(pred, truth, K))
    assert scores.foreground_iou == pytest.approx((p & t).sum() / (p | t).sum())
    assert scores.foreground_dice == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
    assert scores.foreground_precision == pytest.approx((p & t).sum() / p.sum())
    assert scores.foreground_recall == pytest.approx((p & t).sum() / t.sum())


def test_absent_class_has_no_score_and_no_say_in_the_mean():
    scores = compute_semantic_scores(np.array([[8, 2, 0], [2, 8, 0], [0, 0, 0]]))
    assert np.isnan(scores.iou[2])
    assert scores.miou == pytest.approx(8 / 12)
    named = scores.to_dict(("background", "live", "dead"))
    assert "pixel/iou_dead" not in named
    assert named["pixel/iou_live"] == named["pixel/miou"]


def test_class_in_the_prediction_only_scores_zero_and_counts():
    scores = compute_semantic_scores(np.array([[8, 0, 2], [0, 0, 0], [0, 0, 0]]))
    assert (scores.iou[2], scores.precision[2], scores.recall[2]) == (0.0, 0.0, 0.0)
    assert scores.miou == pytest.approx(0.4)


def test_nothing_known_leaves_no_score():
    confusion = compute_confusion(np.zeros(3, int), np.full(3, 255), 2)
    assert compute_semantic_scores(confusion).to_dict(("background", "cell")) == {}


def test_different_shapes_are_refused():
    with pytest.raises(ShapeError, match="need equal shapes"):
        compute_confusion(np.zeros(3, int), np.zeros(4, int), 2)


@pytest.mark.parametrize(
    ("pred", "truth", "who"), [([2], [0], "predicted"), ([0], [2], "true"), ([-1], [0], "predicted")]
)
def test_class_out_of_range_is_refused(pred, truth, who):
    with pytest.raises(DataError, match=f"{who} classes from"):
        compute_confusion(np.array(pred), np.array(truth), 2)


@settings(max_examples=60, deadline=None)
@given(data=arrays(np.int64, st.tuples(st.integers(2, 40), st.just(2)), elements=st.integers(0, 5)))
def test_auroc_is_the_mann_whitney_statistic_ties_included(data):
    scores, positive = data[:, 0] / 5, data[:, 1] > 2
    if positive.all() or not positive.any():
        assert np.isnan(compute_auroc(scores, positive))
        return
    expected = mannwhitneyu(scores[positive], scores[~positive]).statistic / positive.sum() / (~positive).sum()
    assert compute_auroc(scores, positive) == pytest.approx(expected)
    oracle = binary_auroc(torch.tensor(scores), torch.tensor(positive).long())
    assert compute_auroc(scores, positive) == pytest.approx(float(oracle), abs=1e-6)
    histogram = np.stack([np.bincount(data[~positive, 0], minlength=6), np.bincount(data[positive, 0], minlength=6)])
    assert compute_binned_auroc(histogram) == pytest.approx(expected)


def test_binned_auroc_of_one_kind_is_undefined():
    assert drop_undefined({"a": compute_binned_auroc(np.array([[1, 2], [0, 0]])), "b": 1.0}) == {"b": 1.0}
