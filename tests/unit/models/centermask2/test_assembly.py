"""The whole detector, put together from settings, against every published list of weights."""

import gzip
import json
import os
from pathlib import Path

import pytest
import torch

from cellvision.errors import ConfigError
from cellvision.models.build import build_model
from cellvision.models.centermask2.assembly import build_detector
from cellvision.models.centermask2.config_file.settings import CenterMaskSettings
from cellvision.models.centermask2.settings import NetSettings
from cellvision.models.detectron2 import parts

SHARED = Path(os.environ.get("CELLVISION_SHARED", Path(__file__).resolve().parents[5] / "shared"))
KEYS = SHARED / "design" / "centermask2-keys"
LITE = {"fpn_channels": 128, "class_convs": 2, "box_convs": 2, "mask_convs": 2, "maskiou_convs": 2}
NETS = {
    "lite-V-19-slim": ({"backbone": "vovnet19_slim", **LITE}, 12_445_756),
    "lite-V-19-slim-dw": ({"backbone": "vovnet19_slim_dw", **LITE}, 11_176_924),
    "lite-V-19": ({"backbone": "vovnet19", **LITE}, 20_115_788),
    "lite-V-39": ({"backbone": "vovnet39", **LITE}, 35_108_940),
    "lite-Mv2": ({"backbone": "mobilenetv2", **LITE}, 11_487_820),
    "V-39": ({"backbone": "vovnet39"}, 52_608_972),
    "V-39-dcn": ({"backbone": "vovnet39", "deformable": True}, 54_382_575),
    "V-57": ({"backbone": "vovnet57"}, 68_868_556),
    "V-99": ({"backbone": "vovnet99"}, 96_914_636),
    "R-50": ({"backbone": "resnet50"}, 51_227_852),
    "R-101": ({"backbone": "resnet101"}, 70_167_756),
    "X-101": ({"backbone": "resnext101_32x8d"}, 114_312_396),
}
"""{published net: (its settings, its parameters with 80 classes)}."""


def build(net):
    settings = NetSettings().change({**NETS[net][0], "norm": "frozen"})
    with torch.device("meta"):  # names and shapes without the numbers
        return build_detector(settings, in_channels=3, class_count=80)


@pytest.mark.parametrize("net", NETS)
def test_the_number_of_parameters_is_the_published_one(net):
    assert sum(parameter.numel() for parameter in build(net).parameters()) == NETS[net][1]


@pytest.mark.shared
@pytest.mark.skipif(not KEYS.is_dir(), reason=f"key lists of the published nets are not at {KEYS}")
@pytest.mark.parametrize("net", NETS)
def test_names_and_shapes_of_all_weights_are_the_published_ones(net):
    with gzip.open(KEYS / f"{net}.json.gz") as stream:
        published = json.load(stream)
    expected = {name: tuple(shape) for name, shape in dict(published["keys"]).items()}
    assert {name: tuple(value.shape) for name, value in build(net).state_dict().items()} == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backbones": "vovnet39"}, r"unknown setting of centermask2 'model\.backbones'.*try: 'model\.backbone'"),
        ({"decoding": {"post_mns": 5}}, r"'model\.decoding\.post_mns'.*try: 'model\.decoding\.post_nms'"),
        ({"decoding": 5}, r"model\.decoding=5; need keys with values"),
        ({"norm": "frozen"}, r"model\.norm=frozen without weights"),
        ({"weights_order": "gbr"}, r"model\.weights_order 'gbr'"),
        ({"roi_levels": [2]}, r"model\.roi_levels with \[2\]; need some of the pyramid's levels \[3, 4, 5, 6, 7\]"),
        (
            {"weights": "none.pth", "pretrained": True},
            r"model\.weights=none\.pth and model\.pretrained=true; need one",
        ),
        ({"weights": "none.pth"}, r"no weights none\.pth"),
        ({"backbone": "resnet18", "pretrained": "no"}, r"model\.pretrained='?no'?; need true or false"),
        ({"config_file": 5}, r"model\.config_file=5; need the path of a YAML file"),
        ({"classes": ["background"]}, r"model\.classes=\['background'\]"),
        ({"in_channels": 0}, r"in_channels=0"),
        ({"kind": "semantic"}, r"model\.kind 'semantic'"),
    ],
)
def test_bad_settings_are_explained(given, said):
    from cellvision.errors import CellvisionError

    arguments = {"in_channels": 1, "classes": ["background", "cell"], "backbone": "vovnet19_slim_dw", **given}
    with pytest.raises(CellvisionError, match=said):
        build_model(name="centermask2", **arguments)


def test_parts_for_detectron2_have_the_same_weights():
    """Made one by one and of classes of their own; detectron2 itself is not needed for that."""
    given = CenterMaskSettings(
        backbone="vovnet19_slim_dw", levels=(3, 4, 5), out_channels=32, num_classes=2, mask_iou=True, norm="batch"
    )
    with torch.device("meta"):
        expected = build_detector(NetSettings.from_config_file(given), in_channels=3, class_count=2)
        built = parts.build_parts(given)
    kinds = (parts.PyramidBackbone, parts.CenterProposals, parts.CenterMaskHeads)
    for name, kind in zip(("backbone", "proposal_generator", "roi_heads"), kinds, strict=True):
        assert type(built[name]) is kind
        wanted = expected.get_submodule(name).state_dict()
        found = built[name].state_dict()
        assert {key: value.shape for key, value in found.items()} == {key: v.shape for key, v in wanted.items()}
    assert built["proposal_generator"].strides == expected.backbone.strides
    assert built["roi_heads"].pool.strides == {3: 8, 4: 16, 5: 32}


def test_settings_survive_the_way_through_plain_values():
    settings = NetSettings().change({"semantic": {"width": 64}, "roi_sampling": {"per_image": 64}, "levels": [2, 3]})
    assert NetSettings().change(settings.to_plain()) == settings
    with pytest.raises(ConfigError):
        settings.change({"semantic": {"widht": 64}})
