"""What the launcher's options may be."""

import math

import pytest

from cellvision.cloud.options import LaunchOptions
from cellvision.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "need"),
    [
        ("timeout_hours", 0.0, "a finite number above 0"),
        ("timeout_hours", -1.0, "a finite number above 0"),
        ("timeout_hours", math.nan, "a finite number above 0"),
        ("poll_s", 0.0, "a finite number above 0"),
        ("max_trials", 0, "a number from 1 up"),
        ("concurrent", 0, "a number from 1 up"),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, value, need):
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{name}={value}; need {need}; try: "):
        LaunchOptions(**{name: value}).check()


def test_numbers_in_their_ranges_pass():
    LaunchOptions().check()
    LaunchOptions(timeout_hours=0.5, poll_s=0.1, max_trials=1).check()
