"""Names, shapes and numbers of parameters against those of the published nets."""

import gzip
import json
import os
from pathlib import Path

import pytest
import torch

from cellvision.models.backbones.bottom_up import build_bottom_up, list_bottom_ups
from cellvision.models.backbones.fpn import FPN

SHARED = Path(os.environ.get("CELLVISION_SHARED", Path(__file__).resolve().parents[5] / "shared"))
KEYS = SHARED / "design" / "centermask2-keys"

NETS = {
    "lite-V-19-slim": ("vovnet19_slim", 128, 2_647_984, 885_760),
    "lite-V-19-slim-dw": ("vovnet19_slim_dw", 128, 1_379_152, 885_760),
    "lite-V-19": ("vovnet19", 128, 10_170_560, 1_033_216),
    "lite-V-39": ("vovnet39", 128, 25_163_712, 1_033_216),
    "lite-Mv2": ("mobilenetv2", 128, 1_780_160, 795_648),
    "V-39": ("vovnet39", 256, 25_163_712, 3_540_992),
    "V-39-dcn": ("vovnet39", 256, 26_937_315, 3_540_992),
    "V-57": ("vovnet57", 256, 41_423_296, 3_540_992),
    "V-99": ("vovnet99", 256, 69_469_376, 3_540_992),
    "R-50": ("resnet50", 256, 23_454_912, 3_868_672),
    "R-101": ("resnet101", 256, 42_394_816, 3_868_672),
    "X-101": ("resnext101_32x8d", 256, 86_539_456, 3_868_672),
}
"""{published net: (bottom-up, channels of the pyramid, parameters of the bottom-up, of the pyramid itself)}."""


def build_pyramid(net):
    name, channels, _, _ = NETS[net]
    with torch.device("meta"):  # names and shapes without the numbers
        bottom_up = build_bottom_up(
            name, in_channels=3, levels=(3, 4, 5), norm="frozen", deformable=net.endswith("dcn"), freeze_at=2
        )
        return FPN(bottom_up=bottom_up, out_channels=channels)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("net", NETS)
def test_numbers_of_parameters(net):
    _, _, bottom_up_count, pyramid_count = NETS[net]
    pyramid = build_pyramid(net)
    assert (count(pyramid.bottom_up), count(pyramid) - count(pyramid.bottom_up)) == (bottom_up_count, pyramid_count)


@pytest.mark.shared
@pytest.mark.skipif(not KEYS.is_dir(), reason=f"key lists of the published nets are not at {KEYS}")
@pytest.mark.parametrize("net", NETS)
def test_names_and_shapes(net):
    with gzip.open(KEYS / f"{net}.json.gz") as stream:
        published = json.load(stream)
    expected = {name: shape for name, shape in dict(published["keys"]).items() if name.startswith("backbone.")}
    buffers = {name for name in published["buffers"] if name.startswith("backbone.")}
    pyramid = build_pyramid(net)
    assert {f"backbone.{name}": list(value.shape) for name, value in pyramid.state_dict().items()} == expected
    assert {f"backbone.{name}" for name, _ in pyramid.named_buffers()} == buffers


def test_every_bottom_up_is_compared_or_belongs_to_a_compared_family():
    unpublished = {"vovnet19_dw", "resnet18", "resnet34", "resnet152", "resnext50_32x4d"}
    assert set(list_bottom_ups()) == {name for name, *_ in NETS.values()} | unpublished
