import pytest

from cellvision.metrics.viability import compute_field_viability, compute_viability_scores


def compare(true_live, true_dead, pred_live, pred_dead):
    return compute_field_viability(true_live=true_live, true_dead=true_dead, pred_live=pred_live, pred_dead=pred_dead)


def test_errors_are_in_percentage_points_with_sign():
    fields = [compare(8, 2, 9, 1), compare(5, 5, 4, 6), compare(10, 0, 10, 0)]
    assert [field.error_pp for field in fields] == [10.0, -10.0, 0.0]
    scores = compute_viability_scores(fields)
    assert (scores.fields, scores.undefined) == (3, 0)
    assert scores.error_pp == pytest.approx(20 / 3)
    assert scores.bias_pp == pytest.approx(0.0)


def test_coverage_counts_truths_inside_the_predicted_interval():
    assert compute_viability_scores([compare(9, 1, 9, 1), compare(1, 9, 9, 1)]).coverage == 0.5


def test_fields_without_prediction_are_counted_apart():
    scores = compute_viability_scores([compare(5, 5, 0, 0), compare(0, 0, 5, 5), compare(0, 0, 0, 0)])
    assert (scores.fields, scores.undefined) == (0, 1)
    assert scores.to_dict() == {"field/viability_fields": 0.0, "field/viability_undefined": 1.0}


def test_no_field_at_all():
    assert compute_viability_scores([]).fields == 0
