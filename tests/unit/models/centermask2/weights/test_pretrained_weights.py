"""Weights of others into a detector: what is taken, what is changed, what is told."""

import re

import pytest
import timm
import torch
import torchvision
from torch import nn

from cellvision.errors import ConfigError, DataError, MissingExtraError
from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.backbones.fpn import FPN
from cellvision.models.centermask2.weights.pretrained import find_timm_weights, load_pretrained, load_timm_weights

STEM = "backbone.bottom_up.stem.stem_1/conv.weight"


class Detector(nn.Module):
    """A backbone with heads that have the published names."""

    def __init__(self, *, name="vovnet19_slim_dw", in_channels=3, classes=4, norm="frozen", width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        bottom_up = build_bottom_up(name, in_channels=in_channels, levels=(3, 4, 5), norm=norm)
        self.backbone = FPN(bottom_up=bottom_up, out_channels=width)
        head = nn.ModuleDict({"cls_logits": nn.Conv2d(width, classes, 3), "ctrness": nn.Conv2d(width, 1, 3)})
        self.proposal_generator = nn.ModuleDict({"fcos_head": head})
        mask_head = nn.ModuleDict({"mask_fcn1": nn.Conv2d(width, width, 3), "predictor": nn.Conv2d(width, classes, 1)})
        maskiou_head = nn.ModuleDict({"maskiou": nn.Linear(width, classes)})
        self.roi_heads = nn.ModuleDict({"mask_head": mask_head, "maskiou_head": maskiou_head})
        generator = torch.Generator().manual_seed(seed)
        for value in self.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


def get_weights(detector):
    return {name: value.clone() for name, value in detector.state_dict().items()}


def check_equal(detector, expected, *, besides=()):
    for name, value in detector.state_dict().items():
        if name not in besides and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("head", ["", "module.", "net.detector."])
def test_whole_detector_comes_back(tmp_path, head):
    theirs, ours = Detector(seed=1), Detector()
    file = tmp_path / "official.pth"
    state = {f"{head}{name}": value for name, value in theirs.state_dict().items()}
    pixels = {
        f"{head}pixel_mean": torch.tensor([103.5, 116.25, 123.5]).view(3, 1, 1),
        f"{head}pixel_std": torch.ones(3, 1, 1),
    }
    torch.save({"model": {**state, **pixels}, "iteration": 1}, file)
    report = load_pretrained(ours, file, order="rgb")
    check_equal(ours, theirs.state_dict())
    count = len(theirs.state_dict())
    assert (len(report.loaded), report.total) == (count, count)
    assert (report.pixel_mean, report.pixel_std) == ((103.5, 116.25, 123.5), (1, 1, 1))
    assert report.to_lines() == [f"{file}: loaded {count} of {count} tensors", "weights_order=rgb: as set"]


@pytest.mark.parametrize("place", ["", "backbone.bottom_up.", "bottom_up.", "module.backbone."])
def test_file_of_a_backbone_leaves_the_rest(place):
    theirs, ours = Detector(seed=1), Detector()
    before = get_weights(ours)
    bottom_up = theirs.backbone.bottom_up.state_dict()
    weights = {**{f"{place}{name}": value for name, value in bottom_up.items()}, "fc.bias": torch.ones(2)}
    report = load_pretrained(ours, weights, order="rgb")
    expected = {**before, **{f"backbone.bottom_up.{name}": value for name, value in bottom_up.items()}}
    check_equal(ours, expected)
    assert len(report.loaded) == len(bottom_up)
    assert {name for name in report.missing if "bottom_up" in name} == set()
    lines = report.to_lines()
    assert lines[0] == f"weights: loaded {len(bottom_up)} of {len(before)} tensors"
    assert lines[1].startswith("not in the file, left as they began: backbone.fpn_lateral3 (2 tensors), ")
    assert lines[2] == "in the file, of no use here: fc.bias"


@pytest.mark.parametrize("part", ["backbone", "backbone.bottom_up"])
def test_a_part_can_be_loaded_from_a_whole_detector(part):
    theirs, ours = Detector(seed=1), Detector().get_submodule(part)
    report = load_pretrained(ours, theirs.state_dict(), order="rgb")
    check_equal(ours, theirs.get_submodule(part).state_dict())
    assert (report.missing, report.skipped) == ((), {})


def test_a_number_in_place_of_a_row_does_not_fit():
    ours, name = Detector(classes=2), "proposal_generator.fcos_head.cls_logits.bias"
    report = load_pretrained(ours, {**Detector(classes=2, seed=1).state_dict(), name: torch.tensor(0.5)}, order="rgb")
    assert report.skipped == {name: "shape () in the file, (2,) here"}


def test_other_classes_keep_their_new_heads():
    theirs, ours = Detector(classes=80, seed=1), Detector(classes=2)
    before = get_weights(ours)
    report = load_pretrained(ours, theirs.state_dict(), order="rgb")
    heads = {
        f"{head}.{leaf}"
        for head in (
            "proposal_generator.fcos_head.cls_logits",
            "roi_heads.mask_head.predictor",
            "roi_heads.maskiou_head.maskiou",
        )
        for leaf in ("weight", "bias")
    }
    assert report.skipped == dict.fromkeys(heads, "80 classes in the file, 2 here")
    check_equal(ours, {**theirs.state_dict(), **{name: before[name] for name in heads}})
    assert re.fullmatch(
        r"does not fit, left as it began: .*fcos_head.* \(80 classes in the file, 2 here\)", report.to_lines()[1]
    )


@pytest.mark.parametrize(("here", "there"), [(1, 3), (2, 3), (5, 3), (3, 1), (7, 2)])
def test_equal_channels_give_the_same_as_in_the_file(here, there):
    theirs, ours = Detector(in_channels=there, seed=1), Detector(in_channels=here)
    report = load_pretrained(ours, theirs.state_dict(), order="rgb")
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        expected, found = (
            net.eval().backbone(image.expand(-1, count, -1, -1)) for net, count in ((theirs, there), (ours, here))
        )
    torch.testing.assert_close(list(found.values()), list(expected.values()), rtol=1e-4, atol=1e-4)
    how = "summed up" if here == 1 else "repeated"
    assert report.adapted == {STEM: f"{how}: {there} image channels in the file, {here} here"}
    assert report.to_lines()[1] == f"changed to fit: {STEM} ({report.adapted[STEM]})"


@pytest.mark.parametrize("order", ["bgr", None])
@pytest.mark.parametrize("name", ["vovnet19_slim", "resnet18", "mobilenetv2"])
def test_published_weights_take_red_first(name, order):
    theirs, ours = Detector(name=name, seed=1), Detector(name=name)
    weights = {**theirs.state_dict(), "pixel_mean": torch.tensor([1.0, 2.0, 3.0])}
    report = load_pretrained(ours, weights, order=order)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            list(ours.eval().backbone(image.flip(1)).values()),
            list(theirs.eval().backbone(image).values()),
            rtol=1e-4,
            atol=1e-4,
        )
    assert report.pixel_mean == (3.0, 2.0, 1.0)
    assert report.to_lines()[-1] == f"weights_order=bgr: {'as set' if order else 'as published weights are'}"


def test_exchanging_other_than_three_channels_is_refused():
    theirs = Detector(in_channels=2).state_dict()
    need = "need three channels to exchange; try: model.weights_order=rgb"
    with pytest.raises(
        DataError, match=rf"model.weights_order=bgr for weights, .* is of shape \(64, 2, 3, 3\); {need}"
    ):
        load_pretrained(Detector(), theirs, order="bgr")
    report = load_pretrained(Detector(in_channels=2), theirs)
    assert report.order is None
    assert not any("weights_order" in line for line in report.to_lines())


def make_encoder_weights(kind):
    """(net of ours, names of that kind) of the same structure."""
    if kind == "torchvision ResNet":
        return Detector(name="resnet18"), torchvision.models.resnet18().state_dict()
    if kind == "torchvision MobileNetV2":
        return Detector(name="mobilenetv2"), torchvision.models.mobilenet_v2().state_dict()
    if kind == "timm MobileNetV2":
        return Detector(name="mobilenetv2"), timm.create_model("mobilenetv2_100").state_dict()
    if kind == "timm VoVNet":
        return Detector(name="vovnet19_slim"), timm.create_model("ese_vovnet19b_slim").state_dict()
    # an encoder that is timm's own, from a file of the whole net or of the extractor, whose names are ours
    features_only = kind == "timm, extractor"
    return Detector(name="resnet10t"), timm.create_model("resnet10t", features_only=features_only).state_dict()


KINDS = [
    "torchvision ResNet",
    "torchvision MobileNetV2",
    "timm MobileNetV2",
    "timm VoVNet",
    "timm, whole",
    "timm, extractor",
]


@pytest.mark.parametrize("order", ["rgb", None])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_timm_and_torchvision_know_red_first(kind, order):
    ours, weights = make_encoder_weights(kind)
    report = load_pretrained(ours, weights, order=order)
    stem = next(value for value in ours.backbone.bottom_up.state_dict().values() if value.ndim == 4)
    assert torch.equal(stem, next(value for value in weights.values() if value.ndim == 4))
    scheme = kind.partition(",")[0]
    assert (report.scheme, report.order) == (scheme, "rgb")
    assert report.to_lines()[-1] == f"weights_order=rgb: {'as set' if order else f'as {scheme} weights are'}"


@pytest.mark.parametrize("kind", KINDS)
def test_blue_first_is_refused_for_weights_of_timm_and_torchvision(kind):
    ours, weights = make_encoder_weights(kind)
    before = get_weights(ours)
    said = rf"model.weights_order=bgr for weights, whose names are those of {kind.partition(',')[0]} weights; need rgb,"
    with pytest.raises(ConfigError, match=rf"{said} .*; try: model.weights_order=rgb$"):
        load_pretrained(ours, weights, order="bgr")
    check_equal(ours, before)


def test_unknown_order_is_refused():
    with pytest.raises(ConfigError, match=r"unknown model.weights_order 'gbr'; need one of: bgr, rgb"):
        load_pretrained(Detector(), Detector().state_dict(), order="gbr")


@pytest.mark.parametrize(("here", "there"), [("batch", "frozen"), ("frozen", "batch"), ("sync", "batch")])
def test_frozen_and_batch_statistics_fit_each_other(here, there):
    theirs, ours = Detector(norm=there, seed=1), Detector(norm=here)
    report = load_pretrained(ours, theirs.state_dict(), order="rgb")
    check_equal(ours, theirs.state_dict())
    assert (report.missing, report.unused, report.filled) == ((), (), {})
    assert len(report.loaded) == report.total


def test_affine_norms_get_mean_0_and_variance_1():
    theirs, ours = Detector(seed=1), Detector()
    state = {name: value for name, value in theirs.state_dict().items() if "running" not in name}
    report = load_pretrained(ours, state, order="rgb")
    assert report.missing == ()
    assert len(report.filled) == len(theirs.state_dict()) - len(state)
    for name in report.filled:
        assert (ours.state_dict()[name] == (1 if name.endswith("var") else 0)).all()
    check_equal(ours, state, besides=report.filled)
    assert "not in the file, set: backbone.bottom_up (" in report.to_lines()[1]


def test_scale_of_batch_statistics_is_no_scale_of_groups():
    ours = Detector(norm="group")
    report = load_pretrained(ours, Detector(norm="frozen", seed=1).state_dict())
    assert set(report.skipped.values()) == {"of batch normalisation in the file, of another kind here"}
    assert all("norm." in name for name in report.skipped)
    assert all(name.endswith(("running_mean", "running_var")) for name in report.unused)


def test_narrower_pyramid_is_told_and_left():
    theirs, ours = Detector(width=16, seed=1), Detector(width=8)
    report = load_pretrained(ours, theirs.state_dict(), order="rgb")
    assert report.skipped["backbone.fpn_lateral3.weight"] == "shape (16, 256, 1, 1) in the file, (8, 256, 1, 1) here"
    check_equal(ours.backbone.bottom_up, theirs.backbone.bottom_up.state_dict())


@pytest.mark.parametrize(
    "weights",
    [
        {"layer.weight": torch.ones(2, 2)},
        {"backbone.bottom_up.stem.stem_1/norm.weight": torch.ones(64)},
        {"backbone.bottom_up.stem.stem_1/conv.weight": torch.ones(5, 3, 3, 3)},
        {},
    ],
)
def test_a_file_of_which_nothing_fits_is_an_error(weights):
    ours = Detector()
    before = get_weights(ours)
    with pytest.raises(
        DataError, match=rf"nothing in weights fits the net \({len(weights)} tensors such as .*need names and shapes"
    ):
        load_pretrained(ours, weights, order="rgb")
    check_equal(ours, before)


def test_numbers_that_are_not_finite_leave_the_net_as_it_is():
    ours = Detector()
    before, state = get_weights(ours), Detector(seed=1).state_dict()
    state["backbone.fpn_output5.bias"][1] = torch.nan
    with pytest.raises(DataError, match=r"backbone.fpn_output5.bias in weights holds numbers that are not finite"):
        load_pretrained(ours, state, order="rgb")
    check_equal(ours, before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8])
def test_whole_numbers_are_no_weights(dtype):
    """Cut off to whole numbers most weights are 0, which loads without a word and finds nothing."""
    ours = Detector()
    before, state = get_weights(ours), Detector(seed=1).state_dict()
    whole = {name: value.to(dtype) for name, value in state.items()}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        DataError, match=rf"^backbone\.\S+ in weights is of type {kind}; need floating-point .*; try: the"
    ):
        load_pretrained(ours, whole)
    check_equal(ours, before)
    name = "roi_heads.mask_head.predictor.weight"
    with pytest.raises(DataError, match=rf"^{re.escape(name)} in weights is of type {kind}; need floating-point"):
        load_pretrained(ours, {**state, name: whole[name]})
    check_equal(ours, before)


def test_half_precision_is_taken():
    theirs, ours = Detector(seed=1), Detector()
    load_pretrained(ours, {name: value.half() for name, value in theirs.state_dict().items()}, order="rgb")
    check_equal(ours, {name: value.half().float() for name, value in theirs.state_dict().items()})


def test_excitation_that_timm_lacks_is_open_but_learns():
    torch.manual_seed(0)
    encoder = timm.create_model("ese_vovnet39b", features_only=True, out_indices=(2, 3, 4)).eval()
    whole = timm.create_model("ese_vovnet39b")
    for ours, value in zip(whole.state_dict().values(), encoder.state_dict().values(), strict=False):
        ours.copy_(value)  # in the same order, under other names
    bottom_up = build_bottom_up("vovnet39", in_channels=3, levels=(3, 4, 5), norm="batch").eval()
    report = load_timm_weights(bottom_up, whole.state_dict())
    lacking = [f"stage{level}.OSA{level}_1.ese.fc.{leaf}" for level in (4, 5) for leaf in ("bias", "weight")]
    assert sorted(report.filled) == lacking
    assert (report.missing, report.skipped) == ((), {})
    images = torch.rand(1, 3, 64, 64)
    found, expected = bottom_up(images), encoder(images)
    for maps, reference in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(maps, reference, rtol=2e-3, atol=1e-3 * reference.abs().max().item())
    sum(maps.square().mean() for maps in found.values()).backward()
    for name in lacking:
        assert bottom_up.get_parameter(name).grad.abs().max() > 0
    with torch.no_grad():
        for name in lacking:
            bottom_up.get_parameter(name).fill_(3.0 if name.endswith("bias") else 0.0)
        assert all(map(torch.equal, bottom_up(images).values(), encoder(images)))


def test_torchvision_weights_fit_a_detector(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.resnet18()
    torch.save(reference.state_dict(), tmp_path / "resnet18.pth")
    ours = Detector(name="resnet18", in_channels=1)
    report = load_pretrained(ours, tmp_path / "resnet18.pth")
    assert torch.equal(ours.backbone.bottom_up.res3[0].shortcut.norm.bias, reference.layer2[0].downsample[1].bias)
    torch.testing.assert_close(
        ours.backbone.bottom_up.stem.conv1.weight, reference.conv1.weight.detach().sum(1, keepdim=True)
    )
    assert (report.unused, report.scheme) == (("fc.bias", "fc.weight"), "torchvision ResNet")


@pytest.fixture
def pretend_download(monkeypatch):
    """Weights of timm without the network: random ones in place of the trained."""
    create, made = timm.create_model, []

    def create_offline(name, *, pretrained, **arguments):
        torch.manual_seed(7)
        made.append((create(name, pretrained=False, **arguments), pretrained))
        return made[-1][0]

    monkeypatch.setattr(timm, "create_model", create_offline)
    return made


@pytest.mark.parametrize(
    ("name", "first", "mean"), [("resnet18", "stem.conv1", 255 * 0.485), ("vovnet57", "stem.stem_1/conv", 127.5)]
)
def test_weights_of_timm_are_fetched_by_name(pretend_download, name, first, mean):
    bottom_up = build_bottom_up(name, in_channels=1, levels=(3,), norm="frozen")
    report = load_timm_weights(bottom_up, find_timm_weights(name))
    encoder, pretrained = pretend_download[-1]
    assert pretrained
    theirs = next(value for value in encoder.state_dict().values() if value.ndim == 4)
    torch.testing.assert_close(bottom_up.state_dict()[f"{first}.weight"], theirs.sum(1, keepdim=True))
    assert report.missing == ()
    assert report.source == find_timm_weights(name)
    assert (report.pixel_mean[0], len(report.pixel_std)) == (pytest.approx(mean), 3)


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t"])
def test_encoders_of_timm_take_their_own_weights(pretend_download, name):
    bottom_up = build_bottom_up(name, in_channels=3, levels=(3, 4, 5), norm="frozen")
    report = load_timm_weights(bottom_up, find_timm_weights(name))
    assert (report.missing, report.skipped, report.filled) == ((), {}, {})
    assert report.total == len(bottom_up.state_dict())
    encoder, _ = pretend_download[-1]
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for maps, expected in zip(bottom_up.eval()(images).values(), encoder.eval()(images)[-3:], strict=True):
            torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


def test_backbones_without_weights_are_named():
    with pytest.raises(
        ConfigError, match=r"pretrained=true for model.backbone=vovnet99; need one of mobilenetv2, .*, vovnet57 or"
    ):
        find_timm_weights("vovnet99")


def test_weights_that_cannot_be_had_are_named(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network\nretry")

    monkeypatch.setattr(timm, "create_model", fail)
    bottom_up = build_bottom_up("resnet18", in_channels=1, levels=(3,), norm="frozen")
    with pytest.raises(ConfigError, match=r"weights 'resnet18.x' of timm cannot be had \(OSError: no network\); need"):
        load_timm_weights(bottom_up, "resnet18.x")


def test_weights_need_timm(monkeypatch):
    bottom_up = build_bottom_up("resnet18", in_channels=1, levels=(3,), norm="frozen")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm is not installed"):
        load_timm_weights(bottom_up, "resnet18.tv_in1k")
