import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_f1_score

from cellvision.errors import ConfigError, DataError, ShapeError
from cellvision.metrics.cells import compute_cell_scores, compute_field_score, sum_fields
from cellvision.types import IGNORE

CLASSES = ("background", "live", "dead")


def draw_field(cells, *, columns=10):
    """A label image with ``cells`` separate 3x3 cells."""
    image = np.zeros((4 * -(-cells // columns), 4 * columns), np.int32)
    for label in range(1, cells + 1):
        row, column = divmod(label - 1, columns)
        image[4 * row : 4 * row + 3, 4 * column : 4 * column + 3] = label
    return image


def score(pred_image, pred_classes, true_image, true_classes, **options):
    return compute_field_score(
        pred_label_image=pred_image,
        pred_classes=np.array(pred_classes),
        true_label_image=true_image,
        true_classes=np.array(true_classes),
        classes=CLASSES,
        **options,
    )


def test_hits_misses_and_extras_by_class():
    truth = draw_field(5)
    pred = truth.copy()
    pred[truth == 1] = 0
    pred[3, :] = 0
    pred[3, 30:39] = 6
    field = score(pred, [1, 1, 2, 2, 1, 2], truth, [1, 1, 1, 2, 2])
    assert field.confusion.tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    scores = compute_cell_scores(field)
    assert (scores.precision, scores.recall, scores.f1) == (0.8, 0.8, pytest.approx(0.8))
    assert scores.iou == 1.0
    assert scores.matched_accuracy == 0.5
    assert scores.f1_per_class.tolist() == [2 * 1 / 5, 2 * 1 / 5]
    assert field.count_viability(CLASSES) == (3, 2, 2, 3)


def test_class_scores_of_found_cells_equal_those_of_torchmetrics():
    rng = np.random.default_rng(0)
    image = draw_field(200)
    true, p_live = rng.integers(1, 3, 200), np.zeros(200)
    p_live = np.clip(np.where(true == 1, 0.6, 0.4) + rng.normal(0, 0.2, 200), 0, 1).round(2)
    pred = np.where(p_live >= 0.5, 1, 2)
    scores = compute_cell_scores(score(image, pred, image, true, p_live=p_live))
    p, t = torch.tensor(pred - 1), torch.tensor(true - 1)
    assert scores.matched_accuracy == pytest.approx(float(multiclass_accuracy(p, t, 2, average="micro")))
    expected = multiclass_f1_score(p, t, 2, average="none")
    np.testing.assert_allclose(scores.f1_per_class, expected, rtol=1e-6)
    assert scores.class_f1 == scores.matched_f1 == pytest.approx(float(expected.mean()))
    assert scores.auroc == pytest.approx(float(binary_auroc(torch.tensor(p_live), 1 - t)), abs=1e-6)


def test_headline_falls_with_missed_cells_and_the_matched_score_does_not():
    truth = draw_field(10)
    half = np.where(truth > 5, 0, truth)
    scores = compute_cell_scores(score(half, [1, 2, 1, 2, 1], truth, [1, 2] * 5))
    assert scores.matched_f1 == scores.matched_accuracy == 1.0
    assert scores.class_f1 < 0.7


def test_uncertain_cells_are_no_hit_no_miss_and_no_extra():
    truth = draw_field(3)
    with_it = score(truth, [1, 2, 2], truth, [1, 2, IGNORE])
    missed = score(np.where(truth == 3, 0, truth), [1, 2], truth, [1, 2, IGNORE])
    assert with_it.confusion.tolist() == missed.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert with_it.count_viability(CLASSES) == (1, 1, 1, 1)


def test_fields_are_summed_not_averaged():
    small, large = draw_field(1), draw_field(9)
    wrong = score(small, [2], small, [1], p_live=np.array([0.1]))
    right = score(large, [1] * 9, large, [1] * 9, p_live=np.full(9, 0.9))
    total = sum_fields([wrong, right], 3)
    assert compute_cell_scores(total).matched_accuracy == 0.9
    assert (total.p_live.size, total.is_live.sum(), total.iou_sum) == (10, 10, 10.0)


def test_undefined_scores_are_absent():
    nothing = compute_cell_scores(sum_fields([], 3))
    assert nothing.to_dict(CLASSES) == {}
    image = draw_field(2)
    named = compute_cell_scores(score(image, [1, 1], image, [1, 1], p_live=np.array([0.9, 0.8]))).to_dict(CLASSES)
    assert named["cell/live_dead_f1"] == named["cell/f1_live"] == 1.0
    assert not {"cell/f1_dead", "cell/live_dead_auroc"} & named.keys()


def test_nothing_found_scores_zero_and_stays_defined():
    image = draw_field(2)
    named = compute_cell_scores(score(np.zeros_like(image), [], image, [1, 2])).to_dict(CLASSES)
    assert named["cell/f1"] == named["cell/live_dead_f1"] == 0.0
    assert "cell/live_dead_accuracy" not in named


def test_names_follow_the_classes():
    image = draw_field(3)
    several = compute_field_score(
        pred_label_image=image,
        pred_classes=np.array([1, 2, 3]),
        true_label_image=image,
        true_classes=np.array([1, 2, 3]),
        classes=("background", "a", "b", "c"),
    )
    assert compute_cell_scores(several).to_dict(("background", "a", "b", "c"))["cell/class_f1"] == 1.0
    one = sum_fields([], 2)
    assert not any("class" in name for name in compute_cell_scores(one).to_dict(("background", "nucleus")))


def test_a_label_without_class_is_refused():
    image = draw_field(2)
    with pytest.raises(ShapeError, match=r"predicted label 2 but predicted classes of shape \(1,\)"):
        score(image, [1], image, [1, 1])


@pytest.mark.parametrize(("pred", "true", "who"), [([0, 1], [1, 1], "predicted"), ([1, 1], [1, 3], "true")])
def test_class_out_of_range_is_refused(pred, true, who):
    image = draw_field(2)
    with pytest.raises(DataError, match=f"{who} cells of class"):
        score(image, pred, image, true)


def test_bad_p_live_is_refused():
    image = draw_field(2)
    with pytest.raises(DataError, match=r"not in 0\.\.1"):
        score(image, [1, 1], image, [1, 1], p_live=np.array([0.5, np.nan]))
    with pytest.raises(ShapeError, match="one per predicted cell"):
        score(image, [1, 1], image, [1, 1], p_live=np.array([0.5]))
    with pytest.raises(ConfigError, match='a class "live"'):
        compute_field_score(
            pred_label_image=image,
            pred_classes=np.ones(2, int),
            true_label_image=image,
            true_classes=np.ones(2, int),
            classes=("background", "nucleus"),
            p_live=np.ones(2),
        )
