"""How busy the machine is."""

import os
from pathlib import Path

import pytest
import torch

from cellvision.errors import ConfigError
from cellvision.training.tracking.system_use import SystemUse, measure_use


def test_memory_of_this_process_is_what_the_system_says():
    found = measure_use(torch.device("cpu"))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    own_gib = pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert found.keys() == {"system/cpu_percent", "system/memory_percent", "system/process_memory_gib"}
    assert 0.8 * own_gib < found["system/process_memory_gib"]
    assert 0 < found["system/memory_percent"] < 100
    burnt = sum(range(3_000_000))
    assert burnt
    assert measure_use(torch.device("cpu"))["system/cpu_percent"] > 0


@pytest.mark.parametrize("every_s", [0, -1, True, "30"])
def test_a_time_that_is_none_is_refused(every_s):
    with pytest.raises(ConfigError, match=r"callbacks\.system_use\.every_s=.*; need seconds above 0"):
        SystemUse(every_s=every_s)
