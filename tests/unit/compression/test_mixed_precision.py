"""The layers that stay float, of a net whose losses are known."""

import json
import math

import pytest

from cellvision.compression.qat.mixed import SENSITIVITIES, choose_float, draw_mixed

COSTS = {"a": 0.1, "b": 3.0, "c": 0.0, "d": 2.0, "e": 0.2, "f": 0.4}
MACS = {"a": 10, "b": 20, "c": 30, "d": 5, "e": 20, "f": 15}


def lose(names):
    return sum(cost for layer, cost in COSTS.items() if layer not in names)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize(
    ("budget", "kept"),
    [(6.0, []), (3.0, ["b"]), (1.0, ["b", "d"]), (0.35, ["b", "d", "f"]), (0.05, ["b", "d", "f", "e", "a"])],
)
def test_as_few_of_the_costliest_as_the_budget_needs(sensitivity, budget, kept):
    mixed = choose_float(lose, list(COSTS), MACS, budget=budget, sensitivity=sensitivity)
    assert list(mixed.kept) == kept
    assert mixed.points == pytest.approx(lose(kept))
    assert mixed.met
    assert mixed.float_macs == pytest.approx(sum(MACS[layer] for layer in kept) / 100)
    assert [one.layer for one in mixed.layers if one.kept] == kept


def test_where_nothing_is_enough_the_least_loss_is_taken():
    mixed = choose_float(lambda names: 2.0 - 0.1 * len(names), list(COSTS), MACS, budget=0.0)
    assert not mixed.met
    assert len(mixed.kept) == 5
    assert mixed.points == pytest.approx(1.5)


def test_a_score_that_is_none_costs_most(tmp_path):
    mixed = choose_float(lambda names: lose(names) if "b" in names else math.nan, list(COSTS), MACS, budget=1.0)
    assert "b" in mixed.kept
    assert mixed.met
    json.dumps(mixed.to_record(), allow_nan=False)
    draw_mixed(mixed, tmp_path / "costs.png", score_name="val/mask/ap")
    assert (tmp_path / "costs.png").stat().st_size > 5000
