"""Names of timm, torchvision and caffe2 against the nets themselves."""

import pytest
import timm
import torch
import torchvision

from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.centermask2.weights.names import SCHEMES, match_levels, match_names
from cellvision.models.centermask2.weights.pretrained import TIMM_WEIGHTS, load_timm_weights

LEAVES = {"weight": "w", "bias": "b"}


def settle(net, seed=0):
    """Random weights and statistics, so that no two tensors are alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(torch.rand(value.shape, generator=generator) / value[0].numel() ** 0.5 + 0.1)
    return net.eval()


def list_encoders():
    return [(name, *theirs.split(".")[:1]) for name, theirs in TIMM_WEIGHTS.items()] + [
        ("vovnet19_slim", "ese_vovnet19b_slim"),
        ("vovnet19_slim_dw", "ese_vovnet19b_slim_dw"),
        ("vovnet99", "ese_vovnet99b"),
    ]


@pytest.mark.parametrize(("name", "theirs"), list_encoders())
def test_every_tensor_of_timm_has_its_place(name, theirs):
    with torch.device("meta"):
        encoder = timm.create_model(theirs, num_classes=0)
        bottom_up = build_bottom_up(name, in_channels=3, levels=(2, 3, 4, 5), norm="batch")
    given, wanted = encoder.state_dict(), bottom_up.state_dict()
    match = match_names(given, wanted)
    assert all(given[each].shape == wanted[here].shape for here, each in match.names.items())
    unused = given.keys() - set(match.names.values())
    assert all(each.startswith(("conv_head.", "bn2.")) for each in unused)
    lacking = wanted.keys() - match.names.keys()
    assert all(".ese.fc." in each for each in lacking)
    assert len(match.names) == len(set(match.names.values()))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("resnet18", "resnet18"), ("mobilenetv2", "mobilenetv2_100"), ("vovnet19_slim_dw", "ese_vovnet19b_slim_dw")],
)
def test_maps_are_those_of_timm_after_loading(name, theirs):
    encoder = settle(timm.create_model(theirs, features_only=True))
    whole = timm.create_model(theirs)
    # the extractor has other names for some, in the same order, and lacks the last ones
    for ours, value in zip(whole.state_dict().values(), encoder.state_dict().values(), strict=False):
        ours.copy_(value)
    bottom_up = build_bottom_up(name, in_channels=3, levels=(3, 4, 5), norm="frozen").eval()
    report = load_timm_weights(bottom_up, whole.state_dict())
    assert report.missing == ()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = bottom_up(images), encoder(images)[-3:]
    for maps, reference in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(maps, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "build"), [("resnet50", torchvision.models.resnet50), ("mobilenetv2", torchvision.models.mobilenet_v2)]
)
def test_every_tensor_of_torchvision_has_its_place(name, build):
    with torch.device("meta"):
        given = build().state_dict()
        wanted = build_bottom_up(name, in_channels=3, levels=(5,), norm="batch").state_dict()
    match = match_names(given, wanted)
    assert match.names.keys() == wanted.keys()
    assert all(given[each].shape == wanted[here].shape for here, each in match.names.items())
    unused = given.keys() - set(match.names.values())
    assert all(each.startswith(("fc.", "classifier.", "features.18.")) for each in unused)


def to_caffe2(name):
    """A name of the old model zoo, from one of torchvision."""
    part, leaf = name.rsplit(".", 1)
    if part in ("conv1", "bn1"):
        return f"conv1_{LEAVES[leaf]}" if part == "conv1" else f"res_conv1_bn_{ {'weight': 's', 'bias': 'b'}[leaf] }"
    stage, block, conv = part.split(".", 2)
    branch = "branch1" if conv.startswith("downsample") else f"branch2{'abc'[int(conv[-1]) - 1]}"
    is_norm = conv.startswith("bn") or conv.endswith(".1")
    leaf = f"bn_{ {'weight': 's', 'bias': 'b'}[leaf] }" if is_norm else "w"
    return f"res{int(stage[-1]) + 1}_{block}_{branch}_{leaf}"


def test_old_model_zoo_has_the_order_of_torchvision():
    with torch.device("meta"):
        reference = torchvision.models.resnet50().state_dict()
        wanted = build_bottom_up("resnet50", in_channels=3, levels=(5,), norm="frozen").state_dict()
    names = [name for name in reference if name.endswith((".weight", ".bias")) and not name.startswith("fc")]
    from_torchvision, from_caffe2 = match_names(names, wanted), match_names([to_caffe2(name) for name in names], wanted)
    assert from_caffe2.scheme == "caffe2 ResNet"
    assert from_caffe2.names == {here: to_caffe2(name) for here, name in from_torchvision.names.items()}
    assert len(from_caffe2.names) == len(names) == 159


@pytest.mark.parametrize("head", ["", "module.", "net.detector.", "model.module."])
@pytest.mark.parametrize("place", ["", "bottom_up.", "backbone.", "backbone.bottom_up."])
def test_backbones_are_found_under_any_prefix(head, place):
    with torch.device("meta"):
        names = build_bottom_up("vovnet19_slim", in_channels=3, levels=(3, 4, 5), norm="frozen").state_dict()
    wanted = [*(f"backbone.bottom_up.{name}" for name in names), "backbone.fpn_output3.weight"]
    match = match_names([f"{head}{place}{name}" for name in names] + ["fc.weight"], wanted)
    assert match.names == {f"backbone.bottom_up.{name}": f"{head}{place}{name}" for name in names}


def test_extractors_of_timm_are_found_in_their_whole_nets():
    bottom_up = build_bottom_up("convnext_atto", in_channels=3, levels=(3, 4, 5), norm="batch").state_dict()
    whole = timm.create_model("convnext_atto").state_dict()
    match = match_names(whole, bottom_up)
    assert match.names.keys() == bottom_up.keys()
    assert all(whole[each].shape == bottom_up[here].shape for here, each in match.names.items())


def test_names_that_no_scheme_knows_stay_as_they_are():
    for rename in SCHEMES.values():
        assert rename("proposal_generator.fcos_head.scales.0.scale") == "proposal_generator.fcos_head.scales.0.scale"
    assert match_names(["x.y"], ["a.b"]).names == {}


def list_detector(levels, top):
    """The names of a detector that depend on its levels."""
    laterals = [f"backbone.fpn_lateral{level}.weight" for level in levels]
    scales = [f"proposal_generator.fcos_head.scales.{place}.scale" for place in range(len(levels) + top)]
    return [*laterals, *scales, "proposal_generator.fcos_head.ctrness.weight"]


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (((2, 3, 4), 2), ((3, 4, 5), 2), {1: 0, 2: 1, 3: 2, 4: 3}),
        (((2, 3, 4, 5), 0), ((3, 4, 5), 2), {1: 0, 2: 1, 3: 2}),
        (((3, 4, 5), 2), ((2, 3, 4, 5), 1), {0: 1, 1: 2, 2: 3, 3: 4}),
        (((3, 4, 5), 1), ((3, 4, 5), 2), {0: 0, 1: 1, 2: 2, 3: 3}),
    ],
)
def test_scales_are_matched_by_level(ours, theirs, expected):
    given, wanted = [f"module.{name}" for name in list_detector(*theirs)], list_detector(*ours)
    match = match_levels(match_names(given, wanted), given, wanted)
    scales = {
        int(here.split(".")[3]): int(there.split(".")[4]) for here, there in match.names.items() if "scales" in here
    }
    assert scales == expected
    for level in set(ours[0]) & set(theirs[0]):
        assert match.names[f"backbone.fpn_lateral{level}.weight"] == f"module.backbone.fpn_lateral{level}.weight"
    assert match.names["proposal_generator.fcos_head.ctrness.weight"].endswith("ctrness.weight")


def test_a_backbone_alone_has_no_scales():
    names = ["backbone.fpn_lateral3.weight"]
    match = match_names(names, list_detector((2, 3), 0))
    assert match_levels(match, names, list_detector((2, 3), 0)) is match
