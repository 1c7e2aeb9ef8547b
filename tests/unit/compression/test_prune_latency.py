import copy

import pytest
import torch

from cellvision.compression.prune.cost import count_cost
from cellvision.compression.prune.latency import search_latency
from cellvision.compression.prune.options import PruneOptions
from cellvision.errors import ConfigError
from cellvision.models.build import build_model

IMAGE = torch.zeros(1, 1, 32, 32)
OPTIONS = PruneOptions(macs=0.1, steps=5, protected=("encoder.levels.0.*",))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(16, 32))


def measure(net):
    """As if every million multiplications took 10 ms, and everything else 5."""
    assert not net.training
    return 5 + count_cost(net, IMAGE).macs * 1e-5


def test_the_smallest_ratio_that_is_fast_enough_is_found(net):
    whole_ms = measure(net.eval())
    before = copy.deepcopy(net.train().state_dict())
    found = search_latency(net, IMAGE, measure, target_ms=whole_ms / 2, options=OPTIONS, trials=8)
    by_ratio = {trial.ratio: trial for trial in found.trials}
    assert len(by_ratio) == len(found.trials) == 10
    assert found.trials[0].latency_ms == whole_ms
    assert by_ratio[found.ratio].latency_ms <= whole_ms / 2
    slower = [trial for trial in found.trials if trial.ratio < found.ratio]
    assert all(trial.latency_ms > whole_ms / 2 for trial in slower)
    assert found.ratio - max(trial.ratio for trial in slower) < 0.01
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_net_that_is_fast_enough_stays_whole(net):
    found = search_latency(net, IMAGE, measure, target_ms=1e6, options=OPTIONS)
    assert (found.ratio, len(found.trials)) == (0.0, 1)


def test_what_no_width_can_reach_is_explained(net):
    with pytest.raises(
        ConfigError, match=r"latency_ms=5, and with \d+% of the multiplications it is .* ms of .*; need"
    ):
        search_latency(net, IMAGE, measure, target_ms=5, options=OPTIONS)
