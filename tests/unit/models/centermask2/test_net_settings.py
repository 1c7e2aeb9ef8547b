"""Settings of the net itself: what is refused, and what a config file of detectron2 makes of them."""

import re

import pytest

from cellvision.errors import ConfigError
from cellvision.models.build import build_model
from cellvision.models.centermask2.config_file.settings import CenterMaskSettings
from cellvision.models.centermask2.settings import NetSettings

COUNT, LAYERS = "need a whole number from 1 up; try:", "need a whole number from 0 up; try:"
LEVELS, SWITCH = "need pyramid levels, whole numbers; try:", "need true or false; try:"
WRONG = [
    ("backbone", 39, "need a name; try:"),
    *[(name, value, LEVELS) for name in ("levels", "roi_levels") for value in (5, "345", ["p3"], [3.0], [])],
    *[(name, value, LAYERS) for name in ("class_convs", "box_convs", "shared_convs") for value in (-1, 1.5, True)],
    ("mask_convs", "4", LAYERS),
    *[(name, 0, COUNT) for name in ("maskiou_convs", "fpn_channels")],
    *[(name, "no", SWITCH) for name in ("stride_in_1x1", "deformable", "mask_attention", "mask_iou")],
    *[("prior", value, "need a number above 0 and below 1; try:") for value in (0, 1, "0.01", float("nan"))],
    *[
        (name, value, "need numbers, one per channel; try:")
        for name in ("pixel_mean", "pixel_std")
        for value in (5, [])
    ],
]


def test_what_a_user_needs_is_at_the_top():
    from cellvision.models import centermask2

    assert centermask2.__all__ == ["CenterMask2", "NetSettings", "load_pretrained"]
    assert centermask2.NetSettings is NetSettings
    assert centermask2.CenterMask2.options is NetSettings
    assert centermask2.load_pretrained.__module__.endswith("weights.pretrained")


@pytest.mark.parametrize(("name", "value", "need"), WRONG)
def test_a_wrong_type_or_range_is_refused(name, value, need):
    with pytest.raises(ConfigError, match=rf"^model\.{name}={re.escape(repr(value))}; {need} model\.{name}=.+$"):
        NetSettings().change({name: value})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pixel_mean": [1.0, "a"]}, r"^model\.pixel_mean='a'; need a number; try: "),
        ({"pixel_std": [1.0, 0.0]}, r"^model\.pixel_std=0\.0; need a number above 0; try: "),
        ({"roi_levels": [3, 5]}, r"^model\.roi_levels=\[3, 5\]; need neighbouring pyramid levels, finest first; try: "),
        ({"roi_levels": [4, 3]}, r"^model\.roi_levels=\[4, 3\]; need neighbouring"),
        ({"levels": [3, 5]}, r"^model\.levels=\[3, 5\]; need neighbouring"),
        ({"norm": "layer"}, r"^unknown model\.norm 'layer'; need one of: auto, batch, frozen, group, sync"),
        ({"weights_order": "gbr"}, r"^unknown model\.weights_order 'gbr'; need one of: bgr, rgb"),
        (
            {"weight_order": "bgr"},
            r"^unknown setting of centermask2 'model\.weight_order'.*try: 'model\.weights_order'",
        ),
    ],
)
def test_other_wrong_settings_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        NetSettings().change(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"in_channels": True}, r"model\.in_channels=True; need a whole number from 1 up"),
        ({"in_channels": "3"}, r"model\.in_channels='3'; need a whole number from 1 up"),
        ({"classes": 2}, r"model\.classes=2; need two or more different names"),
        ({"classes": [0, 1]}, r"model\.classes=\[0, 1\]; need two or more different names"),
    ],
)
def test_what_is_no_setting_is_looked_at_too(given, said):
    with pytest.raises(ConfigError, match=said):
        build_model(name="centermask2", **{"in_channels": 1, "classes": ["background", "cell"], **given})


def test_a_config_file_has_limits_of_its_own_for_training():
    given = CenterMaskSettings(
        backbone="vovnet39",
        levels=(3, 4, 5),
        nms_iou=0.4,
        threshold_with_centreness=True,
        score_threshold=0.1,
        score_threshold_train=0.2,
        pre_nms=11,
        pre_nms_train=12,
        post_nms=13,
        post_nms_train=14,
    )
    found = NetSettings.from_config_file(given)
    assert vars(found.decoding) == {
        "score_threshold": 0.1,
        "nms_iou": 0.4,
        "pre_nms": 11,
        "post_nms": 13,
        "threshold_with_centreness": True,
        "soft_nms_sigma": None,
    }
    assert vars(found.proposals) == {**vars(found.decoding), "score_threshold": 0.2, "pre_nms": 12, "post_nms": 14}
    with pytest.raises(ConfigError, match=r"^model\.proposals\.post_nms=0; need"):
        found.change({"proposals": {"post_nms": 0}})


@pytest.mark.parametrize(("given", "expected"), [("BGR", None), ("RGB", "rgb")])
def test_a_config_file_tells_only_an_unusual_order(given, expected):
    file = CenterMaskSettings(backbone="resnet50", levels=(3, 4, 5), channel_order=given, pixel_mean=(1.0, 2.0, 3.0))
    found = NetSettings.from_config_file(file)
    assert found.weights_order == expected
    assert found.pixel_mean == ((3.0, 2.0, 1.0) if given == "BGR" else (1.0, 2.0, 3.0))
