"""Which channels go: scores against those of torch-pruning, and what options make of them."""

import copy

import numpy as np
import pytest
import torch
import torch_pruning as tp
from scipy.stats import spearmanr
from torch import nn

from cellvision.compression.prune.choice import Chooser, score_channels
from cellvision.compression.prune.graph import ChannelGraph
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.parts import list_parts
from cellvision.errors import ConfigError
from cellvision.models.build import build_model

IMAGE = torch.zeros(1, 1, 32, 32)


def build(**arguments):
    torch.manual_seed(0)
    given = {"name": "unet", "widths": (8, 16), **arguments}
    net = build_model(in_channels=1, classes=("background", "cell"), **given)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def make_gradients(net):
    net.train().logits(torch.rand(2, 1, 32, 32) * 255)["classes"].square().mean().backward()


@pytest.mark.parametrize(
    ("importance", "norm", "oracle"),
    [
        # torch-pruning 1.6.1 looks for batch normalisations by the name of group normalisations there
        ("taylor", "group", tp.importance.GroupTaylorImportance(target_types=[nn.Conv2d, nn.GroupNorm])),
        ("bn_scale", "batch", tp.importance.BNScaleImportance(normalizer=None)),
    ],
)
@pytest.mark.parametrize("attention", ["none", "se"])
def test_scores_are_those_of_torch_pruning(importance, norm, oracle, attention):
    net = build(attention=attention, norm=norm)
    make_gradients(net)
    parts = {part.name: part for part in list_parts(net, IMAGE)}
    compared = 0
    for group in ChannelGraph(net, IMAGE).get_all_groups():
        name = next(name for name, module in net.named_modules() if module is group[0].dep.target.module)
        if name in parts:
            found, expected = score_channels(parts[name], importance), oracle(group)
            assert (found is None) == (expected is None)
            if found is not None and expected.isfinite().all():  # not 0 for all channels, as behind a closed ReLU
                torch.testing.assert_close(found, expected)
                compared += 1
    assert compared >= 4


def measure_effects(net, part, images):
    """(part.width,) mean squared change of the results when nobody takes a channel in."""
    with torch.no_grad():
        before, effects = net.logits(images)["classes"], []
        for channel in range(part.width):
            without = copy.deepcopy(net)
            for slices in part.slices:
                if not slices.is_out and isinstance(slices.layer, nn.Conv2d):
                    for name, _, dim in slices.list_tensors():
                        places = slices.places[slices.channels == channel]
                        without.get_parameter(name).index_fill_(dim, places, 0)
            effects.append((without.logits(images)["classes"] - before).square().mean())
    return torch.stack(effects)


@pytest.mark.parametrize("attention", ["none", "se"])
def test_channels_of_large_magnitude_are_those_that_the_results_hang_on(attention):
    net = build(attention=attention)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.copy_(torch.rand_like(norm.weight) * 1.9 + 0.1)
        for _ in range(30):
            net.train().logits(images)
    parts = [part for part in list_parts(net.eval(), IMAGE) if not part.kept_because and "excite" not in part.name]
    ranks = [
        spearmanr(score_channels(part, "magnitude"), measure_effects(net, part, images)).statistic for part in parts
    ]
    assert len(ranks) >= 5
    assert np.mean(ranks) > 0.7


def choose(net, ratio, **options):
    parts = list_parts(net, IMAGE, protected=options.get("protected", ()))
    widths = {part.name: part.width for part in parts}
    chosen = Chooser(parts, PruneOptions(ratio=0.5, **options), widths=widths).choose(ratio)
    return {part.name: (widths[part.name], set(gone.tolist())) for part, gone in chosen.items()}


def test_the_least_of_all_channels_go_first():
    net = build()
    with torch.no_grad():
        net.encoder.levels[0][0][0].weight[3] *= 1e-3
        net.encoder.levels[0][0][1].weight[3] = 1e-3
        net.encoder.levels[0][0][3].weight[:, 3] *= 1e-3
    assert choose(net, 1 / 72) == {"encoder.levels.0.0.0": (8, {3})}


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_a_larger_ratio_removes_what_a_smaller_one_does(scope):
    net = build(norm="group", attention="gate", widths=(8, 24))
    before = {}
    for ratio in (0.3, 0.5, 0.7, 1.0):
        found = choose(net, ratio, scope=scope)
        assert all(gone <= found[name][1] for name, (_, gone) in before.items())
        assert all(len(gone) < width for width, gone in found.values())
        before = found
    assert len(before) == 8


def test_each_layer_loses_its_share_under_local():
    chosen = choose(build(), 0.25, scope="local")
    assert len(chosen) == 7
    assert all(len(gone) == width // 4 for width, gone in chosen.values())


def test_layers_of_one_make_lose_their_share_together():
    """Convolutions that feed one other layer are compared with each other, not with those that feed two."""
    net = build(widths=(8, 16, 16))
    with torch.no_grad():
        net.encoder.levels[2][0][0].weight.mul_(1e-4)
    found = {part.name: part.make for part in list_parts(net, IMAGE)}
    chosen = choose(net, 0.5, scope="isomorphic")
    for make in set(found.values()):
        members = [name for name in found if found[name] == make and name != "head"]
        width = sum(part.width for part in list_parts(net, IMAGE) if part.name in members)
        assert sum(len(chosen[name][1]) for name in members if name in chosen) == width // 2
    assert len(set(found.values())) >= 3


def test_no_layer_is_emptied_nor_cut_below_its_limit():
    for max_ratio, least in ((0.5, 0.5), (0.99, 0.0)):
        chosen = choose(build(), 1.0, max_ratio=max_ratio)
        assert len(chosen) == 7
        assert all(width - len(gone) == max(1, width * least) for width, gone in chosen.values())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_widths_become_multiples(norm):
    chosen = choose(build(widths=(12, 32), norm=norm), 0.4, round_to=4)
    assert all((width - len(gone)) % 4 == 0 for width, gone in chosen.values())
    assert 0.2 < sum(len(gone) for _, gone in chosen.values()) / (4 * 12 + 2 * 32) < 0.6


def test_groups_of_a_normalisation_go_whole():
    chosen = choose(build(widths=(16, 32), norm="group"), 0.4)
    for width, gone in chosen.values():
        size = width // 8
        assert gone == {
            place for unit in {place // size for place in gone} for place in range(unit * size, unit * size + size)
        }


@pytest.mark.parametrize("importance", ["taylor", "fisher"])
def test_an_importance_without_its_gradients_is_explained(importance):
    with pytest.raises(
        ConfigError, match=rf"{importance}, and .*weight has no gradient; need .*; try: a backward pass"
    ):
        choose(build(), 0.5, importance=importance)


def test_taylor_leaves_frozen_layers_alone():
    net = build()
    net.encoder.requires_grad_(False)
    make_gradients(net)
    chosen = choose(net, 0.5, importance="taylor")
    assert "encoder.levels.0.0.0" not in chosen
    assert "decoder.0.convolve.0" in chosen


def test_scales_that_are_all_alike_say_nothing():
    net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(8, 16))
    with pytest.raises(ConfigError, match="bn_scale, and the scales of every layer are all alike; need scales"):
        choose(net, 0.5, importance="bn_scale")


def test_nothing_to_prune_is_explained():
    with pytest.raises(
        ConfigError,
        match=r"no layer to prune by compress.prune.importance=magnitude \(.*is in compress.prune.protected",
    ):
        choose(build(), 0.5, protected=("*",))
