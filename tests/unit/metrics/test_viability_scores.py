import numpy as np
import pytest
from scipy.stats import binom, bootstrap

from cellvision.errors import ConfigError, DataError
from cellvision.metrics.viability import (
    compute_bootstrap_viability,
    compute_field_viability,
    compute_viability_scores,
)

LIVE, DEAD = np.array([9, 30, 12, 7, 40, 22, 3]), np.array([1, 10, 9, 0, 5, 30, 3])


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


def test_bootstrap_over_fields_agrees_with_scipy():
    found = compute_bootstrap_viability(LIVE, DEAD, resamples=20000)
    oracle = bootstrap(
        (LIVE, DEAD),
        lambda live, dead, axis: live.sum(axis) / (live + dead).sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert found.viability == LIVE.sum() / (LIVE + DEAD).sum()
    assert found.low == pytest.approx(oracle.low, abs=0.01)
    assert found.high == pytest.approx(oracle.high, abs=0.01)


def test_bootstrap_over_cells_is_binomial():
    found = compute_bootstrap_viability(LIVE, DEAD, over="cells", resamples=20000, confidence=0.9)
    cells = (LIVE + DEAD).sum()
    low, high = binom.interval(0.9, cells, LIVE.sum() / cells)
    assert found.low == pytest.approx(low / cells, abs=0.01)
    assert found.high == pytest.approx(high / cells, abs=0.01)


def test_unlike_fields_widen_the_interval_and_a_seed_repeats_it():
    fields, cells = (compute_bootstrap_viability(LIVE, DEAD, over=over, seed=1) for over in ("fields", "cells"))
    assert fields.high - fields.low > cells.high - cells.low
    assert compute_bootstrap_viability(LIVE, DEAD, seed=1) == fields
    assert compute_bootstrap_viability(LIVE, DEAD, seed=2) != fields


def test_bootstrap_of_no_cells_is_undefined():
    assert compute_bootstrap_viability(np.zeros(3), np.zeros(3)).low is None
    assert compute_bootstrap_viability(np.array([0, 0, 4]), np.array([0, 0, 0])).low == 1.0


def test_bad_bootstrap_requests_are_refused():
    with pytest.raises(ConfigError, match="unknown bootstrap over 'wells'"):
        compute_bootstrap_viability(LIVE, DEAD, over="wells")
    with pytest.raises(ConfigError, match="resamples=5"):
        compute_bootstrap_viability(LIVE, DEAD, resamples=5)
    with pytest.raises(DataError, match="one live and one dead count"):
        compute_bootstrap_viability(LIVE, DEAD[:-1])
