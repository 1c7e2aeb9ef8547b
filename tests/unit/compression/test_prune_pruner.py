"""Targets, steps and what they leave."""

import copy
import json

import pytest
import torch
from torch import nn

from cellvision.compression.prune.cost import count_cost
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.errors import ConfigError
from cellvision.models.base import NetSpec
from cellvision.models.build import build_model
from cellvision.models.structure.restore import restore_structure
from cellvision.models.structure.widths import read_widths
from cellvision.types import Targets

CELLS = ("background", "cell")
SMALL = {"fpn_channels": 64, "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1}
NETS = {
    "unet": {"name": "unet", "widths": (16, 32, 32), "attention": "gate"},
    "unet_group": {"name": "unet", "widths": (16, 32, 32), "norm": "group"},
    "centermask2": {"name": "centermask2", "backbone": "vovnet19_slim", **SMALL},
}
IMAGE = torch.zeros(1, 1, 64, 64)


def build(name="unet", **arguments):
    torch.manual_seed(0)
    return build_model(in_channels=1, classes=CELLS, **{**NETS[name], **arguments})


def make_batch():
    labels = torch.zeros(2, 64, 64, dtype=torch.int32)
    labels[:, 8:20, 8:20], labels[:, 30:50, 20:40] = 1, 2
    ones = (torch.ones(2, dtype=torch.long),) * 2
    targets = Targets(
        class_map=(labels > 0).long(), distance=(labels > 0).float(), label_image=labels, cell_classes=ones
    )
    return torch.rand(2, 1, 64, 64) * 255, targets


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options", [{"macs": 0.5}, {"parameters": 0.3, "scope": "isomorphic", "steps": 2}])
def test_the_target_is_reached_and_the_net_goes_on_training(name, options):
    net = build(name)
    before = count_cost(net, IMAGE)
    pruner = Pruner(net, IMAGE, PruneOptions(**options))
    while not pruner.is_done:
        step = pruner.step()
    after = count_cost(net, IMAGE)
    assert step.cost == after
    ((key, wanted), *_) = options.items()
    found = getattr(after, key) / getattr(before, key)
    assert wanted - 0.05 < found <= wanted
    assert getattr(step, key) == found
    images, targets = make_batch()
    losses = net.train().losses(images, targets)
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_steps_follow_the_schedule():
    for schedule in ("linear", "cubic"):
        net = build()
        options = PruneOptions(macs=0.4, steps=3, schedule=schedule)
        pruner = Pruner(net, IMAGE, options)
        found = [pruner.step().macs for _ in range(3)]
        wanted = [1 - 0.6 * options.share_done(step) for step in (1, 2, 3)]
        assert found == pytest.approx(wanted, abs=0.03)


def test_a_ratio_counts_the_channels_there_were_at_first():
    net = build()
    pruner = Pruner(net, IMAGE, PruneOptions(ratio=0.6, steps=3, schedule="linear", scope="local"))
    widths = [step.widths["encoder.levels.1.0.0"] for step in (pruner.step(), pruner.step(), pruner.step())]
    assert widths == [(32, 26), (26, 20), (20, 13)]


def test_multiplications_are_counted_for_the_image_that_is_given():
    """Masks are drawn for as many cells in a larger image: a net pruned to half at one size is not at another."""
    larger = torch.zeros(1, 1, 192, 192)
    shares = {}
    for name, counted in (("small", None), ("larger", larger)):
        net = build("centermask2")
        before = [count_cost(net, image).macs for image in (IMAGE, larger)]
        step = Pruner(net, IMAGE, PruneOptions(macs=0.5), counted=counted).step()
        shares[name] = [count_cost(net, image).macs / macs for image, macs in zip((IMAGE, larger), before, strict=True)]
        assert step.macs == shares[name][name == "larger"]
    assert 0.45 < shares["small"][0] <= 0.5 < shares["small"][1]
    assert 0.45 < shares["larger"][1] <= 0.5


def test_a_ratio_by_which_nothing_goes_is_refused():
    options = {"scope": "local", "round_to": 8}
    with pytest.raises(
        ConfigError, match=r"compress\.prune\.ratio=0\.05, by which no channel goes with scope=local and"
    ):
        Pruner(build(), IMAGE, PruneOptions(ratio=0.05, **options)).check_ratio()
    Pruner(build(), IMAGE, PruneOptions(ratio=0.5, **options)).check_ratio()
    Pruner(build(), IMAGE, PruneOptions(macs=0.5, **options)).check_ratio()


def test_an_interrupted_pruning_ends_like_an_unbroken_one():
    options = PruneOptions(macs=0.5, steps=3)
    whole = build()
    pruner = Pruner(whole, IMAGE, options)
    for _ in range(3):
        pruner.step()

    broken = build()
    first = Pruner(broken, IMAGE, options)
    first.step()
    record = {"step": "prune", **read_widths(broken, build()), "state": first.state}
    record = json.loads(json.dumps(record))
    resumed = build()
    restore_structure(resumed, [record])
    resumed.load_state_dict(broken.state_dict())
    second = Pruner(resumed, IMAGE, options, state=record["state"])
    assert not second.is_done
    for _ in range(2):
        last = second.step()
    assert second.is_done
    assert last.macs == pytest.approx(0.5, abs=0.03)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_equal_nets_can_share_one_plan():
    """As processes do: one plans, all cut."""
    first, second = build(), build()
    pruners = [Pruner(net, IMAGE, PruneOptions(macs=0.5)) for net in (first, second)]
    cut = pruners[0].plan()
    for pruner in pruners:
        pruner.apply(cut)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_taylor_is_scored_at_the_step():
    net = build()
    pruner = Pruner(net, IMAGE, PruneOptions(macs=0.5, importance="taylor"))
    images, targets = make_batch()
    sum(net.train().losses(images, targets).values()).backward()
    step = pruner.step()
    assert step.macs == pytest.approx(0.5, abs=0.05)
    assert all(parameter.grad.shape == parameter.shape for parameter in net.parameters())


def test_a_frozen_part_stays_frozen():
    net = build()
    net.encoder.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    Pruner(net, IMAGE, PruneOptions(ratio=0.5, scope="local")).step()
    assert net.encoder.levels[0][0][0].out_channels == 8
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == before


def test_a_target_out_of_reach_tells_what_limits_it():
    options = PruneOptions(macs=0.1, protected=("encoder.*",))
    message = (
        r"prune\.macs=0\.1, and 0\.\d+ is left at the least \(.*encoder.levels.0.0.0.*max_ratio=0\.9 and .*\); need at"
    )
    with pytest.raises(ConfigError, match=message):
        Pruner(build(), IMAGE, options)


def test_widths_too_coarse_for_the_target_are_explained():
    pruner = Pruner(build(), IMAGE, PruneOptions(macs=0.5, scope="local", round_to=8, tolerance=0.001))
    with pytest.raises(
        ConfigError, match=r"macs=0\.5, and the widths there are leave 0\.\d+ or too much; .*tolerance="
    ):
        pruner.step()


def test_a_step_beyond_the_last_is_refused():
    pruner = Pruner(build(), IMAGE, PruneOptions(ratio=0.2))
    pruner.step()
    with pytest.raises(ConfigError, match=r"step 2 of compress.prune.steps=1; need a step that was planned"):
        pruner.step()


class Fixed(nn.Module):
    """Counts on a width that nothing in the graph tells of."""

    spec = NetSpec(name="fixed", kind="semantic", in_channels=1, classes=CELLS, stride=1, outputs=(), tiles=True)

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1)

    def logits(self, images):
        return {"classes": self.last(self.first(images) + torch.ones(1, 8, 1, 1))}


def test_a_net_that_cannot_be_followed_is_left_whole():
    net = Fixed()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ConfigError, match=r"fixed does not run \(.*\) when its layers are cut .*try: compress.prune.protected"
    ):
        Pruner(net, IMAGE, PruneOptions(ratio=0.5)).step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_net_that_has_no_width_to_lose_is_not_asked_for_all_of_it():
    net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(4, 8))
    with pytest.raises(ConfigError, match=r"1\.00 is left at the least .*; need channels that may go; try: ") as caught:
        Pruner(net, IMAGE, PruneOptions(macs=0.5, round_to=8))
    assert str(caught.value).endswith("; try: compress.prune.round_to=1")
    with pytest.raises(ConfigError, match=r"try: fewer protected layers, or a larger compress\.prune\.max_ratio"):
        Pruner(net, IMAGE, PruneOptions(macs=0.5, max_ratio=0.01))


def test_a_net_that_gives_no_numbers_is_not_blamed_on_the_cut():
    net = build()
    with torch.no_grad():
        net.head.bias.fill_(torch.nan)
    with pytest.raises(ConfigError, match="unet, which gives numbers that are not finite before it is cut; need a net"):
        Pruner(net, IMAGE, PruneOptions(ratio=0.5)).plan()
