"""What the launcher's options may be."""

import math
import re

import pytest

from cellvision.cloud.options import LaunchOptions
from cellvision.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "need"),
    [
        ("timeout_hours", 0.0001, "a number from 0.02 up"),
        ("timeout_hours", -1.0, "a number from 0.02 up"),
        ("timeout_hours", math.nan, "a number from 0.02 up"),
        ("poll_s", 0.0, "a number from 0.01 up"),
        ("max_snapshot_mib", math.nan, "a number from 0.01 up"),
        ("max_trials", 0, "a whole number from 1 up"),
        ("concurrent", 0, "a whole number from 1 up"),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, value, need):
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{name}={value}; need {need}; try: "):
        LaunchOptions(**{name: value}).check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compute", ""),
        ("compute", "my cluster"),
        ("instance_type", "a b"),
        ("datastore", "a b"),
        ("experiment", "a/b?"),
        ("shm_size", "foo"),
    ],
)
def test_what_is_no_name_for_azure_is_refused(name, value):
    given = {name: value} | ({"compute": None} if name == "instance_type" else {})
    with pytest.raises(
        ConfigError, match=rf"^hydra\.launcher\.{name}={re.escape(value)}; need .*; try: hydra\.launcher"
    ):
        LaunchOptions(**given).check()


def test_numbers_and_names_in_their_ranges_pass():
    LaunchOptions().check()
    LaunchOptions(compute="cpu-cluster_2", datastore="my_blobs", experiment="nuclei 3.1", shm_size="512m").check()
    LaunchOptions(timeout_hours=0.5, poll_s=0.1, max_trials=1).check()
