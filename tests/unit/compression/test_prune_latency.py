import copy
from dataclasses import replace

import pytest
import torch

from cellvision.compression.prune.cost import count_cost
from cellvision.compression.prune.latency import search_latency
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
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
    assert (found.trials[0].ratio, found.trials[0].macs, found.trials[0].latency_ms) == (0.0, 1.0, whole_ms)
    assert by_ratio[found.best.ratio] == found.best
    assert found.best.latency_ms <= whole_ms / 2
    slower = [trial for trial in found.trials if trial.ratio < found.best.ratio]
    assert all(trial.latency_ms > whole_ms / 2 for trial in slower)
    assert found.best.ratio - max(trial.ratio for trial in slower) < 0.01
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_multiplications_are_counted_on_the_same_image_throughout(net):
    """Of a second search: what is left of the whole net, and not of the training crop beside a field."""
    field, options = torch.zeros(1, 1, 64, 64), replace(OPTIONS, macs=None, ratio=0.4, steps=1)
    pruner = Pruner(net.eval(), IMAGE, options, counted=field)
    left = pruner.step().macs
    found = search_latency(
        net, IMAGE, measure, target_ms=measure(net) * 0.8, options=OPTIONS, counted=field, state=pruner.state, gone=0.4
    )
    assert found.trials[0].macs == pytest.approx(left)
    assert all(trial.macs < left for trial in found.trials[1:])


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_a_net_pruned_by_what_was_found_is_as_fast_as_the_one_that_was_timed(net, importance):
    """At once; and in the second of two steps, from a net that has lost channels and was trained since."""
    options = replace(OPTIONS, importance=importance)
    state, gone, target_ms = None, 0.0, measure(net.eval()) * 0.6
    for share in (0.5, 1.0):
        if importance == "taylor":
            net.zero_grad()
            torch.stack(
                [value.square().mean() for value in net.logits(torch.rand(IMAGE.shape)).values()]
            ).sum().backward()
        found = search_latency(net, IMAGE, measure, target_ms=target_ms, options=options, state=state, gone=gone)
        assert found.trials[0].latency_ms == measure(copy.deepcopy(net).eval())
        gone = found.best.ratio * share
        steps = replace(options, macs=None, ratio=gone, steps=1)
        pruner = Pruner(net, IMAGE, steps, state=state and {**state, "done": 0})
        done = pruner.step()
        state = pruner.state
        with torch.no_grad():
            for value in net.parameters():
                value.add_(torch.randn_like(value), alpha=0.05)
    assert done.macs == found.best.macs
    assert measure(net.eval()) == found.best.latency_ms <= target_ms


def test_a_net_that_is_fast_enough_stays_as_it_is(net):
    found = search_latency(net, IMAGE, measure, target_ms=1e6, options=OPTIONS)
    assert (found.best.ratio, len(found.trials)) == (0.0, 1)


def test_one_time_that_is_far_off_decides_nothing(net):
    """A neighbour's work makes one of three longer; the first time of every net is."""
    seen = set()

    def disturb(trial):
        size = sum(value.numel() for value in trial.parameters())
        is_first = size not in seen
        seen.add(size)
        return measure(trial) * (10 if is_first else 1)

    target_ms = 0.6 * measure(net.eval())
    wanted = search_latency(net, IMAGE, measure, target_ms=target_ms, options=OPTIONS)
    found = search_latency(net, IMAGE, disturb, target_ms=target_ms, options=OPTIONS)
    assert [trial.ratio for trial in found.trials] == [trial.ratio for trial in wanted.trials]
    assert found.best.latency_ms <= target_ms


def test_what_no_width_can_reach_is_explained(net):
    with pytest.raises(
        ConfigError, match=r"latency_ms=5, and with \d+% of the multiplications it is .* ms of "
    ) as caught:
        search_latency(net, IMAGE, measure, target_ms=5, options=OPTIONS)
    key, _, enough = str(caught.value).partition("; try: ")[2].partition(",")[0].partition("=")
    assert key == "compress.prune.latency_ms"
    assert float(enough) >= 1.05 * float(str(caught.value).partition("need more than ")[2].split()[0])
    assert search_latency(net, IMAGE, measure, target_ms=float(enough), options=OPTIONS).best.latency_ms <= float(
        enough
    )
