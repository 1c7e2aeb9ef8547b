"""The layers that stay float, of a net whose losses are known."""

import json
import math

import pytest
from matplotlib.figure import Figure

from cellvision.compression.qat.mixed import SENSITIVITIES, Budget, choose_float
from cellvision.compression.qat.mixed_picture import _draw_trials, draw_mixed
from cellvision.errors import ConfigError

COSTS = {"a": 0.1, "b": 3.0, "c": 0.0, "d": 2.0, "e": 0.2, "f": 0.4}
MACS = {"a": 10, "b": 20, "c": 30, "d": 5, "e": 20, "f": 15}


def lose(names):
    return sum(cost for layer, cost in COSTS.items() if layer not in names)


def time(names):
    """As many ms as layers are float, besides 10."""
    return 10.0 + len(names)


def choose(budget, **how):
    return choose_float(how.pop("lose", lose), list(COSTS), MACS, budget=budget, time=how.pop("time", time), **how)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize(
    ("budget", "kept"),
    [(6.0, []), (3.0, ["b"]), (1.0, ["b", "d"]), (0.35, ["b", "d", "f"]), (0.05, ["b", "d", "f", "e", "a"])],
)
def test_as_few_of_the_costliest_as_the_budget_needs(sensitivity, budget, kept):
    mixed = choose_float(lose, list(COSTS), MACS, budget=Budget(points=budget), sensitivity=sensitivity)
    assert list(mixed.kept) == kept
    assert mixed.chosen.points == pytest.approx(lose(kept))
    assert mixed.chosen.latency_ms is None
    assert mixed.met
    assert mixed.float_macs == pytest.approx(sum(MACS[layer] for layer in kept) / 100)
    assert [one.layer for one in mixed.layers if one.kept] == kept


def test_where_nothing_is_enough_the_least_loss_is_taken():
    mixed = choose_float(lambda names: 2.0 - 0.1 * len(names), list(COSTS), MACS, budget=Budget(points=0.0))
    assert not mixed.met
    assert len(mixed.kept) == 5
    assert mixed.chosen.points == pytest.approx(1.5)
    assert mixed.to_words().startswith("compress.qat.budget_points=0 is missed: 5 layers stay float: 1.50 points lost")


def test_a_picture_of_one_trial_counts_in_whole_layers():
    axes = Figure().subplots()
    _draw_trials(axes, choose_float(lambda names: 0.0, list(COSTS), MACS, budget=Budget(points=1.0)))
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_score_that_is_none_costs_most(tmp_path):
    budget = Budget(points=1.0)
    mixed = choose_float(lambda names: lose(names) if "b" in names else math.nan, list(COSTS), MACS, budget=budget)
    assert "b" in mixed.kept
    assert mixed.met
    json.dumps(mixed.to_record(), allow_nan=False)
    draw_mixed(mixed, tmp_path / "costs.png", score_name="val/mask/ap")
    assert (tmp_path / "costs.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("limit", "kept"),
    [(10.0, []), (11.9, ["b"]), (12.0, ["b", "d"]), (14.5, ["b", "d", "f", "e"]), (99.0, ["b", "d", "f", "e", "a"])],
)
def test_as_many_of_the_costliest_as_the_time_allows(limit, kept):
    mixed = choose(Budget(latency_ms=limit))
    assert list(mixed.kept) == kept
    assert mixed.chosen.latency_ms == 10.0 + len(kept)
    assert mixed.met
    assert all(
        one.latency_ms == 10.0 + one.count and one.points == lose(mixed_names(mixed, one)) for one in mixed.tried
    )
    assert mixed.to_words().endswith(f"points lost, {10 + len(kept)} ms of {limit:g} allowed")


def mixed_names(mixed, one):
    return [cost.layer for cost in mixed.layers[: one.count]]


def test_time_is_not_spent_on_layers_that_cost_nothing():
    costs = {"b": 3.0, "d": 2.0}
    mixed = choose(Budget(latency_ms=99), lose=lambda names: sum(costs[one] for one in costs if one not in names))
    assert mixed.kept == ("b", "d")


def test_of_both_budgets_the_fewest_layers_that_are_enough():
    lines = []
    mixed = choose(Budget(points=1.0, latency_ms=13.5), tell=lines.append)
    assert mixed.kept == ("b", "d")
    assert mixed.met
    assert mixed.to_words() == "2 layers stay float: 0.70 points lost of 1 allowed, 12 ms of 13.5 allowed"
    assert lines[0] == "all 6 layers rounded: 5.70 points lost, 10 ms"
    assert "2 layers kept float: 0.70 points lost, 12 ms" in lines


def test_where_all_can_round_no_layer_is_measured():
    mixed = choose(Budget(points=6.0, latency_ms=10.0))
    assert (mixed.kept, mixed.layers, len(mixed.tried)) == ((), (), 1)


@pytest.mark.parametrize("most", range(5))
def test_points_that_need_too_long_are_missed_aloud(most, tmp_path):
    """With any time too short for five layers the most that it allows stay float, as each of these loses less."""
    limit = 10.0 + most
    mixed = choose(Budget(points=0.05, latency_ms=limit))
    assert list(mixed.kept) == ["b", "d", "f", "e", "a"][:most]
    assert not mixed.met
    said = (
        f"compress.qat.budget_points=0.05 is missed within compress.qat.budget_ms={limit:g}: {most} layers stay float"
    )
    assert mixed.to_words().startswith(said)
    record = json.loads(json.dumps(mixed.to_record(), allow_nan=False))
    assert record["budget"] == {"points": 0.05, "latency_ms": limit}
    assert record["chosen"] == {"count": most, "points": pytest.approx(mixed.chosen.points), "latency_ms": limit}
    assert record["tried"][0] == {"count": 0, "points": pytest.approx(5.7), "latency_ms": 10.0}
    assert not record["met"]
    draw_mixed(mixed, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").stat().st_size > 5000


def test_a_time_that_did_not_matter_is_not_blamed():
    mixed = choose(Budget(points=0.0, latency_ms=99.0), lose=lambda names: 2.0)
    assert mixed.to_words().startswith("compress.qat.budget_points=0 is missed: 0 layers stay float: 2.00 points lost")


def test_times_that_jump_are_never_exceeded():
    times = {0: 10.0, 1: 14.0, 2: 9.0, 3: 15.0, 4: 11.0, 5: 20.0}
    for limit in (10.0, 11.0, 14.0, 20.0):
        for points in (None, 0.05, 1.0):
            mixed = choose(Budget(points=points, latency_ms=limit), time=lambda names: times[len(names)])
            assert mixed.chosen.latency_ms <= limit


@pytest.mark.parametrize("points", [None, 6.0, 1.0])
def test_a_net_too_slow_with_all_rounded_is_refused_before_anything_is_scored(points):
    scored = []
    said = r"budget_ms=9.5, and with all layers rounded it is 10 ms; need at least 10 ms, .*; try: .*budget_ms=11"
    with pytest.raises(ConfigError, match=said):
        choose(Budget(points=points, latency_ms=9.5), lose=scored.append)
    assert not scored


def test_a_net_of_one_layer_rounds_it():
    mixed = choose_float(lambda names: 2.0, ["a"], {"a": 1}, budget=Budget(points=1.0, latency_ms=20), time=time)
    assert mixed.kept == ()
    assert not mixed.met
