import pytest

from cellvision.compression.prune.options import PruneOptions
from cellvision.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"prune has no target; need one of ratio, macs, parameters; try: prune\.macs=0\.5"),
        ({"ratio": 0.5, "macs": 0.5}, r"prune has ratio=0\.5 and macs=0\.5"),
        ({"macs": 1.0}, r"prune\.macs=1\.0; need a share in \(0, 1\)"),
        ({"ratio": 0.5, "max_ratio": 0}, r"prune\.max_ratio=0;"),
        ({"ratio": 0.5, "tolerance": 2}, r"prune\.tolerance=2;"),
        ({"ratio": 0.5, "steps": 0}, r"prune\.steps=0; need a whole number from 1 up"),
        ({"ratio": 0.5, "round_to": 0}, r"prune\.round_to=0;"),
        ({"ratio": 0.5, "importance": "l1"}, "unknown prune.importance 'l1'"),
        ({"ratio": 0.5, "scope": "all"}, "unknown prune.scope 'all'"),
        ({"ratio": 0.5, "schedule": "cosine"}, "unknown prune.schedule 'cosine'"),
    ],
)
def test_options_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        PruneOptions(**given)


@pytest.mark.parametrize(
    ("schedule", "shares"), [("linear", [0, 0.25, 0.5, 0.75, 1]), ("cubic", [0, 0.578, 0.875, 0.984, 1])]
)
def test_a_schedule_begins_at_nothing_and_ends_at_all(schedule, shares):
    options = PruneOptions(parameters=0.5, steps=4, schedule=schedule)
    assert [round(options.share_done(step), 3) for step in range(5)] == shares
    assert options.share_done(9) == 1
