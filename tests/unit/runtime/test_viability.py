import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from cellvision.errors import ConfigError, DataError
from cellvision.runtime.viability import compute_viability


@given(live=st.integers(0, 5000), dead=st.integers(0, 5000), confidence=st.floats(0.01, 0.9999))
def test_interval_is_scipys_wilson_interval(live, dead, confidence):
    found = compute_viability(live, dead, confidence=confidence)
    if live + dead == 0:
        assert (found.viability, found.low, found.high) == (None, None, None)
        return
    oracle = binomtest(live, live + dead).proportion_ci(confidence_level=confidence, method="wilson")
    assert found.low == pytest.approx(oracle.low, abs=1e-9)
    assert found.high == pytest.approx(oracle.high, abs=1e-9)
    assert 0.0 <= found.low <= found.viability <= found.high <= 1.0


def test_one_class_only_still_has_a_wide_interval():
    all_live, all_dead = compute_viability(10, 0), compute_viability(0, 10)
    assert (all_live.viability, all_live.high) == (1.0, 1.0)
    assert all_live.low == pytest.approx(0.7225, abs=1e-4)
    assert (all_dead.low, all_dead.high) == (0.0, pytest.approx(1.0 - 0.7225, abs=1e-4))


def test_no_cells_is_undefined_not_zero():
    assert compute_viability(0, 0).viability is None


def test_negative_count_is_refused():
    with pytest.raises(DataError, match="-1 live and 2 dead cells; need counts from 0 up"):
        compute_viability(-1, 2)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, float("nan")])
def test_confidence_outside_0_1_is_refused(confidence):
    with pytest.raises(ConfigError, match="confidence="):
        compute_viability(1, 1, confidence=confidence)
