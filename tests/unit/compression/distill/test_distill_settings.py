"""Terms, weights and schedules, and what is said of wrong ones."""

import pytest

from cellvision.compression.distill.schedule import SCHEDULES, compute_share
from cellvision.compression.distill.step import Distill
from cellvision.compression.distill.terms import CELL_TERMS, MAP_TERMS, choose_terms
from cellvision.errors import ConfigError


def test_usual_terms_and_changed_ones():
    found, lines = choose_terms(MAP_TERMS, {"classes": None, "features": 2, "boundary": 0}, {"distance": "it has none"})
    assert found == {"features": 2.0}
    assert lines == ["distill: no distance: it has none"]
    assert choose_terms(CELL_TERMS, {}, {})[0] == {name: each for name, each in CELL_TERMS.items() if each}


@pytest.mark.parametrize(
    ("given", "missing", "message"),
    [
        (
            {"class": 1},
            {},
            r"unknown loss of this net 'compress.distill.weights.class'; need one of: .*boundary.*focus.*try",
        ),
        ({"masks": 1}, {}, r"distill.weights.boundary, .*distill.weights.features"),
        ({"distance": 1}, {"distance": "there is none"}, r"distill.weights.distance=1 and there is none"),
        ({"classes": -1}, {}, r"distill.weights.classes=-1; need a number from 0 to"),
        ({"classes": 1e300}, {}, r"distill.weights.classes=1e\+300; need a number from 0 to 10000"),
        ({"classes": "x"}, {}, r"distill.weights.classes='x'"),
        (dict.fromkeys(MAP_TERMS), {}, r"nothing to learn; need a weight above 0 for one of classes, "),
    ],
)
def test_wrong_terms_are_explained(given, missing, message):
    with pytest.raises(ConfigError, match=message):
        choose_terms(MAP_TERMS, given, missing)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_never_ends_the_teaching_early(schedule):
    shares = [compute_share(schedule, epoch, 7) for epoch in range(7)]
    assert all(0 < share <= 1 for share in shares)
    rising = sorted(shares)
    assert shares == (rising if schedule.endswith("from_zero") else rising[::-1])
    if schedule != "constant":
        assert max(shares) == 1
        assert min(shares) < 0.15
        back = schedule.replace("to_", "x_").replace("from_", "to_").replace("x_", "from_")
        assert [compute_share(back, epoch, 7) for epoch in range(7)] == shares[::-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "linear"}, r"unknown compress.distill.schedule 'linear'; need one of: .*try: 'linear_"),
        ({"temperature": 0}, r"distill.temperature=0; need a number above 0"),
        ({"channel_temperature": -1.0}, r"distill.channel_temperature=-1.0"),
        ({"boundary_px": 0.5}, r"distill.boundary_px=0.5; need a whole number"),
        ({"boundary_px": 101}, r"distill.boundary_px=101; need a whole number from 1 to 100"),
        ({"temperature": 1e6}, r"distill.temperature=1000000.0; need a number above 0 to 100"),
        ({"channel_temperature": 101}, r"distill.channel_temperature=101; need a number above 0 to 100"),
        ({"confident": 1}, r"distill.confident=1; need a number from 0 up and below 1"),
        ({"quality_power": -1}, r"distill.quality_power=-1"),
        ({"quality_power": 101}, r"distill.quality_power=101; need a number from 0 to 100"),
        ({"weight": -1}, r"distill.weight=-1"),
        ({"cache_mib": -1}, r"distill.cache_mib=-1"),
        ({"weight": 1e300}, r"distill.weight=1e\+300; need a number from 0 to 10000"),
        ({"weight": "abc"}, r"distill.weight='abc'; need a number from 0 to"),
        ({"weight": True}, r"distill.weight=True; need a number from 0 to"),
        ({"throughout": "maybe"}, r"distill.throughout='maybe'; need true or false"),
        ({"throughout": None}, r"distill.throughout=None; need true or false"),
        ({"teacher": 5}, r"distill.teacher=5; need a path of a checkpoint or a bundle, or null; try: .*best\.ckpt"),
        ({"teacher": ""}, r"distill.teacher=''; need a path"),
        ({"teacher": True}, r"distill.teacher=True; need a path"),
        ({"weights": 0}, r"distill.weights=0; need a weight for each term"),
        ({"weights": ["classes"]}, r"distill.weights=\['classes'\]; need a weight for each term"),
    ],
)
def test_wrong_settings_are_explained(given, message):
    with pytest.raises(ConfigError, match=message):
        Distill(**given)
