"""The small net of its own: as fast as the compressed one, evenly narrower, and truly fresh."""

import pytest
import torch
from compressed_run import CLASSES, MAPS, SIZE, prune, save, start
from torch import nn

from cellvision.export.compressed import narrowing
from cellvision.export.compressed.narrowing import NoSuchWidthError, narrow, shrink_to_latency, start_fresh
from cellvision.models.build import build_model
from cellvision.training.checkpoint import load_net

IMAGE = torch.zeros(1, 1, *SIZE)
DETECTOR = {
    "name": "centermask2",
    "backbone": "vovnet19_slim_dw",
    "levels": [3, 4],
    "top_levels": 1,
    "fpn_channels": 32,
    "assigning": {"sizes_of_interest": [16, 32]},
    "roi_levels": [3, 4],
    "in_channels": 1,
    "classes": CLASSES,
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build_config(widths=(16, 32, 64)):
    return build_model(name="unet", in_channels=1, classes=CLASSES, widths=widths).config


def list_weights(net):
    return {name: value.detach() for name, value in net.named_parameters() if value.ndim > 1}


def test_half_of_a_net_is_drawn_like_a_net_of_half_the_widths():
    config = build_config((16, 32, 64))
    fresh = start_fresh(config, narrow(config, IMAGE, 0.5), seed=3)
    direct = [build_model(**{**config, "widths": [8, 16, 32]}) for _ in range(20)]
    shapes = {name: value.shape for name, value in fresh.state_dict().items()}
    assert shapes == {name: value.shape for name, value in direct[0].state_dict().items()}
    for name, weight in list_weights(fresh).items():
        many = torch.stack([list_weights(net)[name] for net in direct])
        assert abs(float(weight.mean())) < 5 * float(many.std()) / weight.numel() ** 0.5
        assert float(weight.std() / many.std()) == pytest.approx(1, abs=4 / weight.numel() ** 0.5)


def test_what_a_net_sets_itself_stays():
    """Spread of a detector's head, which does not depend on widths, and its bias by which cells are rare at first."""
    config = build_model(**DETECTOR).config
    fresh, whole = start_fresh(config, narrow(config, IMAGE, 0.5)), build_model(**DETECTOR)
    before = whole.state_dict()
    smaller = [name for name, value in fresh.named_parameters() if value.shape != before[name].shape]
    assert len(smaller) > 30
    for name, value in fresh.named_parameters():
        if value.ndim <= 1 and len(before[name].unique()) == 1:  # a constant
            assert torch.equal(value, before[name][: len(value)])
        elif "tower" in name and value.ndim > 1:
            assert float(value.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert sum("tower" in name for name, _ in fresh.named_parameters()) > 2
    assert start_fresh(config, narrow(config, IMAGE, 0.5), seed=1).state_dict().keys() == before.keys()


def test_seeds_make_other_weights_and_the_same_one_equal_ones():
    config = build_config((8, 16))
    record = narrow(config, IMAGE, 0.4)
    state = torch.random.get_rng_state()
    one, again, other = (start_fresh(config, record, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert nn.init._calculate_fan_in_and_fan_out(torch.zeros(3, 2, 5, 5)) == (50, 75)


def test_all_layers_get_narrower_alike():
    config = build_config((16, 32, 64))
    whole, fresh = build_model(**config), start_fresh(config, narrow(config, IMAGE, 0.25))
    for name, value in list_weights(whole).items():
        share = list_weights(fresh)[name].shape[0] / value.shape[0]
        assert share == (1.0 if name.startswith("head") else 0.75)


def test_the_small_net_is_as_fast_as_the_compressed_one(tmp_path):
    net = start(name="unet", widths=(16, 32))
    config = net.config
    record = prune(net, macs=0.4)
    said = []
    image = torch.zeros(1, 1, 64, 64)
    found = shrink_to_latency(config, [record], image, tolerance=0.25, runs=31, tell=said.append)
    assert abs(found.times - 1) <= 0.25
    assert found.times == next(trial.times for trial in found.trials if trial.ratio == found.record["ratio"])
    assert len(said) == len(found.trials)
    fresh = start_fresh(config, found.record)
    assert 0.2 < count(fresh) / count(build_model(**config)) < 0.8
    path = save(fresh, tmp_path / "scratch.ckpt", found.record, splitting=MAPS)
    loaded, kept = load_net(path)
    assert kept.recipe == (found.record,)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in loaded.state_dict().items())


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.fixture
def stopwatch(monkeypatch):
    """Times in place of measured ones: a net takes as long as it has parameters."""
    monkeypatch.setattr(narrowing, "open_graph", lambda net, image, *, threads, cells: count(net))
    monkeypatch.setattr(narrowing, "_compare", lambda one, other, runs: one / other)


def test_the_search_ends_within_the_tolerance(stopwatch):
    net = start(name="unet", widths=(32, 64, 64))
    config = net.config
    record = prune(net, macs=0.3)
    found = shrink_to_latency(config, [record, {"step": "quantize", "plan": {}}], IMAGE, tolerance=0.05)
    assert count(start_fresh(config, found.record)) / count(net) == pytest.approx(found.times)
    assert abs(found.times - 1) <= 0.05
    assert [abs(trial.times - 1) <= 0.05 for trial in found.trials] == [False] * (len(found.trials) - 1) + [True]


def test_both_draw_as_many_masks_as_the_compressed_net_finds_cells(stopwatch, monkeypatch):
    """Where masks are half of the time, nets that are equally fast with few of them are not with many."""
    net = build_model(**DETECTOR)
    config, record, asked = net.config, narrow(net.config, IMAGE, 0.4), []

    def time(net, image, *, threads, cells):
        asked.append(cells)
        return count(net)

    monkeypatch.setattr(narrowing, "open_graph", time)
    shrink_to_latency(config, [record], IMAGE, cells=7, tolerance=0.3)
    assert set(asked) == {7}
    assert len(asked) >= 2


def test_a_time_that_no_width_has_is_explained(stopwatch, monkeypatch):
    net = start(name="unet", widths=(8, 16))
    config = net.config
    record = prune(net, macs=0.5)
    monkeypatch.setattr(narrowing, "_compare", lambda one, other, runs: 1.6 if one > 1000 else 0.7)
    with pytest.raises(
        NoSuchWidthError, match=r"nearest of 4 widths takes 0\.700 times .* within 0\.05; try: resume=auto on a machine"
    ):
        shrink_to_latency(config, [record], IMAGE, trials=4)
