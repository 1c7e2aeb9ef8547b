"""The score from which cells count, as a run takes it over at its end."""

from types import SimpleNamespace

import pytest

from cellvision.bundle import Splitting
from cellvision.metrics.instances.score_threshold import ScoreThreshold
from cellvision.training import finish


def fit(monkeypatch, fitted):
    monkeypatch.setattr(finish, "fit_threshold", lambda *_: fitted)
    task = SimpleNamespace(splitting=Splitting(method="instances", score_threshold=0.5))
    finish._fit_score(SimpleNamespace(is_global_zero=True), task, None, None)
    return task.splitting.score_threshold


@pytest.mark.parametrize(("score", "taken"), [(0.37, 0.37), (1e-9, 1e-6), (1.0, 1 - 1e-6)])
def test_a_fitted_score_becomes_a_threshold_between_0_and_1(monkeypatch, capsys, score, taken):
    assert fit(monkeypatch, ScoreThreshold(threshold=score, objective="ap_dsb_50", value=0.8)) == taken
    assert f"from score {taken:.3f} up" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fitted",
    [
        None,
        ScoreThreshold(threshold=1.0, objective="ap_dsb_50", value=0.0),
        ScoreThreshold(threshold=0.0, objective="ap_dsb_50", value=0.003),
    ],
)
def test_where_no_cell_was_found_the_threshold_stays(monkeypatch, capsys, fitted):
    assert fit(monkeypatch, fitted) == 0.5
    assert "threshold 0.5 as before" in capsys.readouterr().out
