"""Multiplications against those that torch itself counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cellvision.compression.prune.cost import count_cost
from cellvision.compression.prune.runs import run_layers
from cellvision.models.build import build_model

CELLS = ("background", "cell")
SMALL = {"fpn_channels": 16, "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1}
IMAGE = torch.zeros(1, 1, 64, 64)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "unet", "widths": (4, 8, 8), "attention": "gate"},
        {"name": "unet", "widths": (4, 8, 8), "attention": "cbam", "norm": "group"},
        {"name": "centermask2", "backbone": "vovnet19_slim_dw", **SMALL},
        {"name": "centermask2", "backbone": "resnext50_32x4d", "levels": [3, 4], "top_levels": 1,
         "assigning": {"sizes_of_interest": [16, 32]}, "roi_levels": [3, 4], **SMALL},
    ],
)  # fmt: skip
def test_multiplications_are_those_torch_counts(arguments):
    net = build_model(in_channels=1, classes=CELLS, **arguments).eval()
    found = count_cost(net, IMAGE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_layers(net, IMAGE)
    assert found.macs == counter.get_total_flops() // 2
    assert found.parameters == sum(parameter.numel() for parameter in net.parameters())


def test_each_cell_costs_the_same():
    net = build_model(name="centermask2", in_channels=1, classes=CELLS, backbone="vovnet19_slim_dw", **SMALL)
    none, some, more = (count_cost(net, IMAGE, regions=count).macs for count in (0, 10, 30))
    assert none < some
    assert more - some == 2 * (some - none)


def test_deformable_layers_count_where_torch_leaves_them_out():
    net = build_model(
        name="centermask2", in_channels=1, classes=CELLS, backbone="vovnet19_slim", deformable=True, **SMALL
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_layers(net.eval(), IMAGE)
    # three layers per stage on maps of 8, 4 and 2 px: the first takes the stage's input
    sizes = zip((8, 4, 2), (112, 256, 384), (80, 96, 112), strict=True)
    missing = sum(side**2 * 9 * (source * width + 2 * width * width) for side, source, width in sizes)
    assert count_cost(net, IMAGE).macs == counter.get_total_flops() // 2 + missing


def test_the_net_keeps_its_modes():
    net = build_model(name="unet", in_channels=1, classes=CELLS, widths=(4, 8)).train()
    net.encoder.eval()
    before = [module.training for module in net.modules()]
    statistics = {name: value.clone() for name, value in net.named_buffers()}
    count_cost(net, IMAGE)
    assert [module.training for module in net.modules()] == before
    assert all(torch.equal(value, statistics[name]) for name, value in net.named_buffers())
