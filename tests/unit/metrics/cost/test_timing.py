"""Times in turns: the order, the numbers, and what a busy machine does to them."""

import numpy as np
import pytest

from cellvision.metrics.cost.timing import describe_machine, summarise, time_in_turns


def test_every_way_runs_once_a_round_and_each_is_first_in_turn():
    order, told = [], []
    ways = {name: lambda name=name: order.append(name) for name in "abc"}
    times = time_in_turns(ways, runs=4, warm_ups=1, progress=lambda *step: told.append(step))
    assert "".join(order) == "abc bca cab abc bca".replace(" ", "")
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4}
    assert told == [(done, 5) for done in range(1, 6)]


def test_times_are_those_of_the_work(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cellvision.metrics.cost.timing.time.perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    times = time_in_turns({"a": lambda: wait(0.25), "b": lambda: wait(0.5)}, runs=3)
    assert times == {"a": [250.0] * 3, "b": [500.0] * 3}


def test_summary_is_numpys_percentiles_and_rates():
    rng = np.random.default_rng(0)
    values = rng.random(40) * 10 + 5
    found = summarise({"a": values.tolist()}, shape=(4, 3, 250, 1000))["a"]
    assert found.p50_ms == pytest.approx(np.percentile(values, 50), rel=1e-3)
    assert found.p95_ms == pytest.approx(np.percentile(values, 95), rel=1e-3)
    assert found.lowest_ms == pytest.approx(values.min(), rel=1e-3)
    assert found.images_per_s == pytest.approx(4000 / np.median(values), rel=1e-3)
    assert found.mpx_per_s == pytest.approx(1000 / np.median(values), rel=1e-3)
    assert (found.runs, found.ratio) == (40, 1.0)


def test_ratio_holds_while_the_machine_slows_down():
    """What is compared is compared within a round: a load that comes and goes cancels out."""
    load = np.array([1.0, 1.0, 1.0, 5.0, 9.0, 9.0, 1.0])
    found = summarise({"a": (10 * load).tolist(), "b": (4 * load).tolist()}, shape=(1, 1, 8, 8))
    assert found["b"].ratio == 0.4


def test_machine_is_described():
    assert all(describe_machine().values())
