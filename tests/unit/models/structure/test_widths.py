"""A pruned net is rebuilt from plain data alone, whatever net of the registry it is."""

import json

import pytest
import torch
from torch import nn

from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.errors import ConfigError, DataError
from cellvision.models.backbones.norms import FrozenBatchNorm
from cellvision.models.build import build_model, list_models
from cellvision.models.centermask2.start import FROM_CHECKPOINT
from cellvision.models.structure.restore import restore_structure
from cellvision.models.structure.widths import read_widths, set_widths
from cellvision.models.unet.attention import ATTENTIONS

NEEDS_ANOTHER_PACKAGE = {"detectron2"}
"""Nets that cannot be built here, and that cannot be pruned, which has a test of its own."""

FEW = {
    "fpn_channels": 16,
    "class_convs": 1,
    "box_convs": 1,
    "mask_convs": 1,
    "maskiou_convs": 1,
    "levels": [3, 4],
    "top_levels": 1,
    "roi_levels": [3, 4],
    "assigning": {"sizes_of_interest": [16, 32]},
    "decoding": {"score_threshold": 0.0, "post_nms": 5},
}
VARIANTS = {
    "unet": [
        *({"widths": (4, 8, 8), "attention": attention} for attention in ATTENTIONS),
        {"widths": (8, 8, 16), "norm": "group", "attention": "gate"},
        {"widths": (4, 8, 8), "encoder": "resnet10t"},
        {"widths": (4, 8, 8), "encoder": "efficientnet_b0"},
    ],
    "centermask2": [
        {**FEW, "backbone": "vovnet19_slim", "semantic": {"width": 16}},
        {**FEW, "backbone": "vovnet19_slim_dw", "norm": "frozen", "weights": FROM_CHECKPOINT, "freeze_at": 2},
        {**FEW, "backbone": "resnet18", "norm": "group"},
    ],
}
CASES = [
    (name, variant)
    for name in list_models()
    if name not in NEEDS_ANOTHER_PACKAGE
    for variant in VARIANTS.get(name, [{}])
]


def describe(case):
    return "-".join([case[0], *(str(value) for key, value in case[1].items() if key not in FEW)])


@pytest.mark.parametrize("case", CASES, ids=describe)
def test_every_pruned_net_comes_back_from_its_widths(case):
    name, variant = case
    torch.manual_seed(0)
    net = build_model(name=name, in_channels=2, classes=("background", "live", "dead"), **variant)
    images = torch.randint(0, 256, (2, 2, 75, 66)).float()
    net.train()
    with torch.no_grad():
        net.logits(images)  # statistics of data
    pruner = Pruner(net, images[:1], PruneOptions(ratio=0.4, scope="local"))
    pruner.step()
    record = {"step": "prune", **read_widths(net, build_model(**net.config))}
    assert len(record["widths"]) > 20
    assert (variant.get("norm") == "group" or "_dw" in variant.get("backbone", "")) <= (len(record["groups"]) > 0)

    torch.manual_seed(1)
    copy = build_model(**net.config)
    restore_structure(copy, json.loads(json.dumps([record])))
    copy.load_state_dict(net.state_dict())
    assert str(copy) == str(net)
    trained = {key: parameter.requires_grad for key, parameter in net.named_parameters()}
    assert {key: parameter.requires_grad for key, parameter in copy.named_parameters()} == trained
    with torch.no_grad():
        expected, found = net.eval()(images), copy.eval()(images)
    for key, values in expected.items():
        assert torch.equal(found[key], values)


def make_layers(width):
    """Every kind of layer whose width is written down in it; all between ``width`` channels, in groups of 2."""

    class Lone(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(width, 1, 1))
            self.register_buffer("shift", torch.zeros(width, 1, 1))

        def forward(self, maps):
            return maps * self.scale + self.shift

    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, width, 3, groups=width, bias=False),
        nn.GroupNorm(width // 2, width),
        nn.Conv2d(width, width, 1, groups=width // 2),
        FrozenBatchNorm(width),
        nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
        nn.ConvTranspose2d(width, 2 * width, 2, stride=2),
        nn.Conv2d(2 * width, width, 1),
        Lone(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(width),
        nn.Linear(width, 5),
    )


def test_every_kind_of_layer_becomes_what_it_would_be_built_as():
    torch.manual_seed(0)
    small, large = make_layers(6), make_layers(16)
    record = read_widths(small, make_layers(16))
    assert record["groups"] == {"2": 6, "3": 3, "4": 3}
    assert record["widths"]["7.weight"] == [6, 12, 2, 2]
    set_widths(large, record)
    large.load_state_dict(small.state_dict())
    assert str(large) == str(small)
    assert [vars(a).keys() for a in large.modules()] == [vars(b).keys() for b in small.modules()]
    images = torch.rand(2, 3, 9, 9)
    assert torch.equal(large(images), small(images))
    large(images).sum().backward()


def test_a_frozen_layer_stays_frozen():
    net = nn.Sequential(nn.Conv2d(1, 4, 1)).requires_grad_(False)
    set_widths(net, {"widths": {"0.weight": [2, 1, 1, 1], "0.bias": [2]}, "groups": {}})
    assert not net[0].weight.requires_grad


@pytest.mark.parametrize(
    ("widths", "groups", "named"),
    [
        ({"1.weight": [2, 1, 1, 1]}, {}, "1.weight of shape"),
        ({"0.weight": [2, 1]}, {}, "0.weight of shape"),
        ({}, {"1": 2}, "1 with 2 groups"),
    ],
)
def test_a_record_of_another_net_is_refused(widths, groups, named):
    net = nn.Sequential(nn.Conv2d(1, 4, 1))
    with pytest.raises(DataError, match=f"{named}.* in the record of pruning; need .* of the net"):
        set_widths(net, {"widths": widths, "groups": groups})


def test_two_different_nets_have_no_widths_in_common():
    with pytest.raises(DataError, match=r"2 tensors that only one of two nets has, such as 1\.bias"):
        read_widths(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))


def test_a_recipe_is_followed_in_order_and_distillation_changes_no_structure():
    net = nn.Sequential(nn.Linear(2, 8))
    before = {"step": "prune", "widths": {"0.weight": [6, 2], "0.bias": [6]}, "groups": {}}
    after = {"step": "prune", "widths": {"0.weight": [3, 2], "0.bias": [3]}, "groups": {}}
    restore_structure(net, [before, {"step": "distill"}, after])
    assert (net[0].out_features, len(net[0].bias)) == (3, 3)


def test_an_unknown_step_is_named():
    with pytest.raises(DataError, match=r"unknown step of compression 'prunes'; need one of: .*; try: 'prune'"):
        restore_structure(nn.Linear(2, 2), [{"step": "prunes"}])


def test_quantisation_is_put_back_from_its_plan():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())
    plan = {"layers": ["0"], "inputs": {}, "outputs": {"1": False}, "shared": {}, "learned": False}
    restore_structure(net, [{"step": "quantize", "plan": plan}])
    assert type(net[0]).__name__ == "QuantConv2d"


def test_a_net_of_detectron2_is_not_pruned():
    from cellvision.compression.prune.runs import run_layers
    from cellvision.models.detectron2.wrap import Detectron2Net

    with pytest.raises(ConfigError, match="a net of detectron2 to prune; need a net whose layers are in this library"):
        run_layers(Detectron2Net.__new__(Detectron2Net), torch.zeros(1, 1, 8, 8))
