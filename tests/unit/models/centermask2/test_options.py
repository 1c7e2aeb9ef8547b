"""Every option that is wrong is refused in one sentence that has its full name."""

import re

import pytest

from cellvision.errors import ConfigError
from cellvision.models.centermask2.options import FcosAssigning, FcosDecoding, RoiSampling, Semantic
from cellvision.models.centermask2.settings import NetSettings

GROUPS = ("assigning", "fcos_loss", "decoding", "proposals", "roi_sampling", "mask_loss", "semantic")
NAN, INF = float("nan"), float("inf")
SWITCH, COUNT = "need true or false; try:", "need a whole number from 1 up; try:"
RATE, AMOUNT = "need a number from 0 to 1; try:", "need a number from 0 up; try:"
SHARE, ABOVE = "need a number above 0 to 1; try:", "need a number above 0; try:"
RISING, WEIGHTS = "need rising numbers above 0; try:", "need numbers, one per cell class; try:"
WRONG = [
    *[("assigning.sizes_of_interest", value, RISING) for value in (5, "64", ["a"], [64, 32], [0, 32], [True, 32])],
    *[("assigning.sizes_of_interest", value, RISING) for value in ([64, NAN], [64, 64], {"first": 64}, [None])],
    *[("assigning.centre_sampling", value, SWITCH) for value in ("yes", 1)],
    *[("assigning.radius", value, ABOVE) for value in (0, -1, "1.5", True, INF, [1.5])],
    *[("assigning.max_positives", value, COUNT) for value in (0, 2.5, "10", True)],
    *[("fcos_loss.alpha", value, RATE) for value in (1.5, -0.1, "0.25", NAN)],
    *[("fcos_loss.gamma", value, AMOUNT) for value in (-1, INF, "2")],
    *[("fcos_loss.smoothing", value, AMOUNT) for value in (-1, True)],
    *[("fcos_loss.class_weights", value, WEIGHTS) for value in (5, "heavy", {"live": 1}, [])],
    *[(f"{group}.score_threshold", value, RATE) for group in ("decoding", "proposals") for value in (1.1, "0.5")],
    *[(f"{group}.nms_iou", value, RATE) for group in ("decoding", "proposals") for value in (-1, "0.5")],
    *[(f"{group}.pre_nms", value, COUNT) for group in ("decoding", "proposals") for value in (0, "many")],
    *[(f"{group}.post_nms", value, COUNT) for group in ("decoding", "proposals") for value in (-5, 2.5)],
    *[(f"{group}.threshold_with_centreness", "no", SWITCH) for group in ("decoding", "proposals")],
    *[(f"{group}.soft_nms_sigma", value, ABOVE) for group in ("decoding", "proposals") for value in (0, "0.5")],
    *[("roi_sampling.per_image", value, COUNT) for value in (0, True, "512")],
    *[("roi_sampling.positive_fraction", value, SHARE) for value in (0, 1.5, "0.25")],
    *[("roi_sampling.iou", value, SHARE) for value in (0, 1.01, "0.5")],
    ("roi_sampling.append_truth", "false", SWITCH),
    *[("mask_loss.dice", value, AMOUNT) for value in (-1, "1")],
    *[("mask_loss.boundary", value, AMOUNT) for value in (INF, [1])],
    *[("mask_loss.maskiou_weight", value, AMOUNT) for value in (-0.5, "1")],
    *[("semantic.width", value, COUNT) for value in (0, 64.0, "64")],
    (
        "semantic.width",
        33,
        "need an even number, for two channels or more in each group of its norms; try: model.semantic.width=34",
    ),
    *[("semantic.weight", value, AMOUNT) for value in (-1, "0.5", NAN)],
]


def refuse(group, name, value):
    """The sentence with which the settings of a net are refused."""
    with pytest.raises(ConfigError) as caught:
        NetSettings().change({group: {name: value}})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "value", "need"), WRONG)
def test_a_wrong_type_or_range_is_refused(name, value, need):
    said = refuse(*name.split("."), value)
    assert said.startswith(f"model.{name}={value!r}; {need}")
    assert f"; try: model.{name}=" in said


@pytest.mark.parametrize("value", [-2.0, "2", None])
def test_one_wrong_class_weight_is_refused(value):
    assert refuse("fcos_loss", "class_weights", [1.0, value]).startswith(
        f"model.fcos_loss.class_weights={value!r}; {AMOUNT}"
    )


def test_automatic_class_weights_are_refused_with_the_reason():
    said = refuse("fcos_loss", "class_weights", "auto")
    assert said.startswith("model.fcos_loss.class_weights='auto'; need numbers, one per cell class (pixels per class,")
    assert said.endswith("are not cells per class); try: model.fcos_loss.class_weights=[1.0,2.0]")


@pytest.mark.parametrize("value", ["gious", 5])
def test_an_unknown_box_loss_is_refused(value):
    said = refuse("fcos_loss", "box_loss", value)
    assert said.startswith(
        f"unknown model.fcos_loss.box_loss {value!r}; need one of: ciou, diou, giou, iou, linear_iou"
    )


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_name_is_refused(group):
    known = [f"model.{group}.{name}" for name in vars(getattr(NetSettings(), group) or Semantic())]
    typo = known[0].rpartition(".")[2] + "s"
    said = refuse(group, typo, 1)
    assert said == (
        f"unknown setting of model.{group} 'model.{group}.{typo}'; need one of: {', '.join(sorted(known))}; "
        f"try: '{known[0]}'"
    )


@pytest.mark.parametrize("given", [5, "giou", True, [1, 2]])
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_without_keys_is_refused(group, given):
    with pytest.raises(ConfigError, match=rf"^model\.{group}={re.escape(repr(given))}; need keys with values; try: "):
        NetSettings().change({group: given})


def test_every_option_of_every_group_was_tried():
    tried = {name for name, _, _ in WRONG} | {"fcos_loss.box_loss"}
    assert tried == {
        f"{group}.{name}" for group in GROUPS for name in vars(getattr(NetSettings(), group) or Semantic())
    }


def test_published_numbers_are_the_defaults():
    assert FcosAssigning().ranges == ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))
    assert RoiSampling().max_positives == 128
    assert FcosDecoding(soft_nms_sigma=0.5, score_threshold=0, nms_iou=1).post_nms == 50
    assert FcosAssigning(sizes_of_interest=[], max_positives=5).ranges == ((-1, 1e8),)


@pytest.mark.parametrize("given", [{"per_image": 3}, {"per_image": 100, "positive_fraction": 0.005}])
def test_masks_need_one_box_to_learn_from(given):
    size, share = given["per_image"], given.get("positive_fraction", 0.25)
    said = (
        rf"^model\.roi_sampling\.per_image={size} with model\.roi_sampling\.positive_fraction={share}; need a product"
    )
    with pytest.raises(ConfigError, match=said):
        NetSettings().change({"roi_sampling": given})
    assert RoiSampling(per_image=4).max_positives == 1
