"""How a net begins: its normalisation layers, its weights, and the images that these know."""

import pytest
import timm
import torch
import torchvision

from cellvision.errors import ConfigError, DataError
from cellvision.models.build import build_model
from cellvision.models.centermask2.assembly import build_detector
from cellvision.models.centermask2.settings import NetSettings
from cellvision.models.centermask2.start import FROM_CHECKPOINT, choose_norm, load_start
from cellvision.types import DataStats

SMALL = {"fpn_channels": 16, "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1, "norm": "frozen"}
RESNET = NetSettings().change({**SMALL, "backbone": "resnet18"})
VOVNET = NetSettings().change({**SMALL, "backbone": "vovnet19_slim_dw"})
PUBLISHED = ["pixel_mean=[123.675, 116.28, 103.53]: usual for published weights"]
PUBLISHED += ["pixel_std=[1, 1, 1]: usual for published weights"]


def build(settings, *, seed=0):
    torch.manual_seed(seed)
    return build_detector(settings, in_channels=3, class_count=1)


def save(path, tensors):
    torch.save({"model": tensors}, path)
    return str(path)


def get_stem(detector):
    return next(value for value in detector.backbone.bottom_up.state_dict().values() if value.ndim == 4)


@pytest.mark.parametrize(
    ("norm", "has_weights", "expected"),
    [("auto", True, "frozen"), ("auto", False, "batch"), ("group", False, "group"), ("batch", True, "batch")],
)
def test_the_norm_follows_the_weights_unless_it_is_set(norm, has_weights, expected):
    assert choose_norm(NetSettings(norm=norm), has_weights=has_weights).norm == expected


def test_frozen_norm_needs_weights():
    assert choose_norm(RESNET, has_weights=True) is RESNET
    with pytest.raises(ConfigError, match=r"model\.norm=frozen without weights; need model\.weights or .*norm=batch"):
        choose_norm(RESNET, has_weights=False)


def test_frozen_layers_need_weights():
    with pytest.raises(ConfigError, match=r"^model\.freeze_at=2 without weights; need .*; try: model\.freeze_at=0$"):
        choose_norm(NetSettings(freeze_at=2), has_weights=False)
    assert choose_norm(NetSettings(freeze_at=2, norm="batch"), has_weights=True).freeze_at == 2


@pytest.mark.usefixtures("without_download")
@pytest.mark.parametrize("more", [{"norm": "frozen"}, {"norm": "batch", "freeze_at": 2}])
def test_a_net_that_began_with_weights_is_made_again_without_them(more):
    net = build_model(
        name="centermask2",
        in_channels=3,
        classes=["background", "cell"],
        **{**SMALL, "backbone": "resnet18", "pretrained": True, **more},
    )
    assert (net.config["weights"], net.config["pretrained"]) == (FROM_CHECKPOINT, False)
    again = build_model(**net.config)
    assert again.config == net.config
    assert again.report == ()


def test_what_stands_for_a_checkpoint_cannot_be_typed():
    """No argument of a program and no name of a file holds a zero byte; a word that one can type is a file's name."""
    assert "\0" in FROM_CHECKPOINT
    options = {**SMALL, "backbone": "resnet18", "weights": "checkpoint"}
    with pytest.raises(DataError, match=r"^no weights checkpoint; need a file"):
        build_model(name="centermask2", in_channels=3, classes=["background", "cell"], **options)


def test_without_weights_nothing_changes():
    detector = build(VOVNET)
    before = get_stem(detector).clone()
    assert load_start(detector, VOVNET, weights=FROM_CHECKPOINT, pretrained=False) == (VOVNET, ())
    settings, lines = load_start(detector, VOVNET, weights=None, pretrained=False)
    assert (settings, lines) == (VOVNET, ("random; norm frozen, which is trained",))
    assert torch.equal(get_stem(detector), before)


def test_published_weights_bring_order_mean_and_spread(tmp_path):
    theirs, detector = build(VOVNET, seed=1), build(VOVNET)
    file = save(tmp_path / "a.pth", theirs.state_dict())
    settings, lines = load_start(detector, VOVNET, weights=file, pretrained=False)
    assert torch.equal(get_stem(detector), get_stem(theirs).flip(1))
    assert (settings.weights_order, settings.pixel_mean, settings.pixel_std) == (
        "bgr",
        (123.675, 116.28, 103.53),
        (1.0, 1.0, 1.0),
    )
    assert lines[0].startswith(f"{file}: loaded ")
    assert list(lines[1:]) == ["weights_order=bgr: as published weights are", *PUBLISHED, "norm frozen"]


def test_what_the_file_tells_of_images_comes_first(tmp_path):
    pixels = {"pixel_mean": torch.tensor([1.0, 2.0, 3.0]), "pixel_std": torch.tensor([4.0, 5.0, 6.0])}
    file = save(tmp_path / "a.pth", {**build(VOVNET).state_dict(), **pixels})
    settings, lines = load_start(build(VOVNET), VOVNET, weights=file, pretrained=False)
    assert (settings.pixel_mean, settings.pixel_std) == ((3.0, 2.0, 1.0), (6.0, 5.0, 4.0))
    assert f"pixel_mean=[3, 2, 1]: as {file} tells" in lines


def test_what_is_set_comes_before_all(tmp_path):
    given = VOVNET.change({"pixel_mean": [7.0] * 3, "pixel_std": [8.0] * 3, "weights_order": "rgb"})
    theirs, detector = build(VOVNET, seed=1), build(VOVNET)
    file = save(tmp_path / "a.pth", theirs.state_dict())
    settings, lines = load_start(detector, given, weights=file, pretrained=False)
    assert settings == given
    assert torch.equal(get_stem(detector), get_stem(theirs))
    assert list(lines[1:]) == ["weights_order=rgb: as set", "norm frozen"]


def test_weights_of_torchvision_see_images_as_torchvision_shows_them(tmp_path):
    """Oracle: torchvision's own preparation of 8-bit images, and its first layers."""
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18().eval()
    shown_as = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    options = {**SMALL, "backbone": "resnet18", "weights": save(tmp_path / "r.pth", theirs.state_dict())}
    net = build_model(name="centermask2", in_channels=3, classes=["background", "cell"], **options).eval()
    net.set_statistics(DataStats(offset=(0.0,) * 3, scale=(255.0,) * 3, class_pixels=(1, 1)))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    prepared = torchvision.transforms.functional.normalize(images / 255, shown_as.mean, shown_as.std)
    torch.testing.assert_close(net.normalize(images), prepared, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        maps = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(prepared)))))
        found = net.detector.backbone.bottom_up(net.normalize(images))
        torch.testing.assert_close(found[3], theirs.layer2(maps), rtol=1e-4, atol=1e-4)
    assert "weights_order=rgb: as torchvision ResNet weights are" in net.report
    assert "pixel_std=[58.395, 57.12, 57.375]: usual for torchvision ResNet weights" in net.report
    assert (net.settings.weights_order, net.config["weights_order"]) == ("rgb", "rgb")
    assert build_model(**net.config).config == net.config


@pytest.fixture
def without_download(monkeypatch):
    """Random weights of timm in place of the trained."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: create(name, pretrained=False, **more))


@pytest.mark.usefixtures("without_download")
def test_weights_of_timm_tell_their_images():
    vovnet = VOVNET.change({"backbone": "vovnet57"})
    settings, lines = load_start(build(vovnet), vovnet, weights=None, pretrained=True)
    assert (settings.weights_order, settings.pixel_mean, settings.pixel_std) == ("rgb", (127.5,) * 3, (127.5,) * 3)
    assert "weights_order=rgb: as timm VoVNet weights are" in lines
    assert "pixel_mean=[127.5, 127.5, 127.5]: as ese_vovnet57b.ra4_e3600_r256_in1k tells" in lines


@pytest.mark.usefixtures("without_download")
@pytest.mark.parametrize("backbone", ["resnet18", "resnet10t"])
def test_blue_first_is_refused_for_weights_of_timm(backbone):
    options = {**SMALL, "backbone": backbone, "weights_order": "bgr", "pretrained": True}
    with pytest.raises(ConfigError, match=r"^model\.weights_order=bgr for resnet1.*; need rgb, as all weights of timm"):
        build_model(name="centermask2", in_channels=3, classes=["background", "cell"], **options)


def test_blue_first_is_refused_for_a_file_of_torchvision(tmp_path):
    file = save(tmp_path / "r.pth", torchvision.models.resnet18().state_dict())
    options = {**SMALL, "backbone": "resnet18", "weights_order": "bgr", "weights": file}
    with pytest.raises(ConfigError, match=r"r\.pth, whose names are those of torchvision ResNet weights; need rgb"):
        build_model(name="centermask2", in_channels=3, classes=["background", "cell"], **options)


def make_file(path, kind):
    """A file of weights that a net with another bottom-up can take some of."""
    if kind == "torchvision":
        return save(path, torchvision.models.resnet18().state_dict())
    state = build(VOVNET.change({"backbone": "vovnet19_slim"}), seed=1).state_dict()
    return save(path, {name: value for name, value in state.items() if kind == "whole" or "bottom_up" not in name})


def build_from(file, **more):
    """A net with the smallest heads, its norm "auto" unless told."""
    heads = {key: value for key, value in SMALL.items() if key != "norm"}
    options = {"in_channels": 3, **heads, "weights": file, **more}
    return build_model(name="centermask2", classes=["background", "cell"], **options)


def count_convolutions(backbone):
    bottom_up = build(VOVNET.change({"backbone": backbone})).backbone.bottom_up
    return sum(isinstance(module, torch.nn.Conv2d) for module in bottom_up.modules())


@pytest.mark.parametrize("norm", ["auto", "frozen"])
@pytest.mark.parametrize(
    ("kind", "backbone"), [("whole", "vovnet57"), ("whole", "resnet50"), ("torchvision", "resnet50")]
)
def test_weights_of_another_backbone_are_refused_where_the_norm_is_frozen(tmp_path, kind, backbone, norm):
    """Without a norm that is trained, random layers give numbers that no training brings down."""
    file = make_file(tmp_path / "a.pth", kind)
    said = rf"^\d+ of {count_convolutions(backbone)} layers of model\.backbone={backbone} not in {file}"
    with pytest.raises(ConfigError, match=rf"{said}; need weights of .* model\.norm=frozen; try: model\.norm=batch$"):
        build_from(file, backbone=backbone, norm=norm)
    net = build_from(file, backbone=backbone, norm="batch")
    assert net.report[-1] == "norm batch"


def test_a_single_random_layer_behind_a_frozen_norm_is_refused(tmp_path):
    state = build(VOVNET, seed=1).state_dict()
    last = [name for name, value in state.items() if "bottom_up" in name and value.ndim == 4][-1]
    file = save(tmp_path / "a.pth", {name: value for name, value in state.items() if name != last})
    with pytest.raises(ConfigError, match=rf"^1 of {count_convolutions('vovnet19_slim_dw')} layers of "):
        load_start(build(VOVNET), VOVNET, weights=file, pretrained=False)


@pytest.mark.parametrize(
    ("norm", "need", "hint"),
    [
        ("batch", "model.freeze_at=1", "model.freeze_at=0"),
        ("frozen", "model.norm=frozen with model.freeze_at=1", "model.norm=batch model.freeze_at=0"),
    ],
)
def test_random_layers_are_not_frozen(tmp_path, norm, need, hint):
    file, settings = make_file(tmp_path / "a.pth", "heads"), VOVNET.change({"norm": norm, "freeze_at": 1})
    with pytest.raises(ConfigError, match=rf"; need weights of that backbone for {need}; try: {hint}$"):
        load_start(build(settings), settings, weights=file, pretrained=False)


def test_frozen_layers_that_are_in_the_file_are_enough_where_the_norm_is_trained(tmp_path):
    """Both have the same stem, and the rest is trained."""
    file = make_file(tmp_path / "a.pth", "whole")
    assert build_from(file, backbone="vovnet57", norm="batch", freeze_at=1).settings.freeze_at == 1


def test_with_weights_of_the_heads_alone_the_norm_is_trained(tmp_path):
    file = make_file(tmp_path / "a.pth", "heads")
    net = build_from(file, backbone="vovnet57")
    assert net.settings.norm == "batch"
    assert net.report[-1] == "norm batch"
    assert torch.equal(
        net.detector.backbone.fpn_output5.weight, torch.load(file)["model"]["backbone.fpn_output5.weight"]
    )
    with pytest.raises(ConfigError, match=r"layers of model\.backbone=vovnet57 not in .*; try: model\.norm=batch$"):
        build_from(file, backbone="vovnet57", norm="frozen")


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_stem_for_other_channels_is_a_layer_of_the_file(tmp_path, channels):
    file = make_file(tmp_path / "a.pth", "whole")
    net = build_from(file, backbone="vovnet19_slim", in_channels=channels)
    assert net.settings.norm == "frozen"
    assert len(net.settings.pixel_mean) == 3
    net.set_statistics(DataStats(offset=(0.0,) * channels, scale=(255.0,) * channels, class_pixels=(1, 1)))
    mean = (123.675 + 116.28 + 103.53) / 3
    assert net.normalize.offset.flatten().tolist() == pytest.approx([mean] * channels)


def test_a_deformable_net_takes_weights_of_one_that_is_not(tmp_path):
    """Its offsets begin at 0, as they do in the published training."""
    file = make_file(tmp_path / "a.pth", "whole")
    net = build_from(file, backbone="vovnet19_slim", deformable=True)
    assert net.settings.norm == "frozen"


@pytest.mark.parametrize(
    ("key", "values", "channels"), [("mean", [1.0, 2.0], 3), ("std", [1.0, 3.0], 1), ("mean", [1.0, 1.0, 2.0, 4.0], 2)]
)
def test_pixel_statistics_of_an_odd_number_are_refused(key, values, channels):
    average = f"{sum(values) / len(values):g}"
    said = rf"^model\.pixel_{key} of {len(values)} numbers for images of {channels} channels; need one number, or one"
    with pytest.raises(ConfigError, match=rf"{said} per channel, .*; try: model\.pixel_{key}=\[{average}\]$"):
        build_from(None, backbone="vovnet19_slim_dw", in_channels=channels, **{f"pixel_{key}": values})


@pytest.mark.parametrize(
    ("values", "channels", "shown"),
    [([7.0], 2, [7, 7]), ([7.0, 9.0], 2, [7, 9]), ([1.0, 2.0, 6.0], 2, [3, 3]), ([1.0, 2.0, 6.0], 3, [1, 2, 6])],
)
def test_pixel_statistics_are_one_per_channel_or_for_all(values, channels, shown):
    net = build_from(None, backbone="vovnet19_slim_dw", in_channels=channels, pixel_mean=values, pixel_std=values)
    net.set_statistics(DataStats(offset=(0.0,) * channels, scale=(255.0,) * channels, class_pixels=(1, 1)))
    assert net.normalize.offset.flatten().tolist() == pytest.approx(shown)
    assert net.normalize.scale.flatten().tolist() == pytest.approx(shown)


@pytest.mark.parametrize("is_ours", [True, False])
def test_statistics_of_a_file_for_more_channels_are_averaged(tmp_path, is_ours):
    state, means = build_detector(VOVNET, in_channels=5, class_count=1).state_dict(), [1.0, 2.0, 3.0, 4.0, 10.0]
    path, content = tmp_path / "a.pth", {"state_dict": {**state, "pixel_mean": torch.tensor(means)}}
    if is_ours:
        content = {"state_dict": state, "cellvision": {"net": {"name": "centermask2", "pixel_mean": means}}}
    torch.save(content, path)
    net = build_from(str(path), backbone="vovnet19_slim_dw")
    assert net.settings.pixel_mean == (4.0,)
    assert build_model(**net.config).config == net.config


def test_a_semantic_branch_beside_a_file_of_weights_is_told_to_be_random(tmp_path):
    file = save(tmp_path / "a.pth", build(VOVNET, seed=1).state_dict())
    both = VOVNET.change({"semantic": {"width": 8}})
    told = load_start(build(both), both, weights=file, pretrained=False)[1]
    assert told == (
        *load_start(build(VOVNET), VOVNET, weights=file, pretrained=False)[1],
        "semantic branch: random, for weights are loaded into the detector alone",
    )


@pytest.mark.parametrize("pixels", [{}, {"pixel_mean": [128.0], "pixel_std": [11.5]}])
def test_a_checkpoint_of_ours_is_red_first_and_knows_its_own_images(tmp_path, pixels):
    """Without a mean of its own it saw images mapped to 0..1; the published mean would shift them."""
    theirs, detector, path = build(VOVNET, seed=1), build(VOVNET), tmp_path / "best.ckpt"
    tensors = {f"net.detector.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": tensors, "cellvision": {"net": {"name": "centermask2", **pixels}}}, path)
    settings, _ = load_start(detector, VOVNET, weights=str(path), pretrained=False)
    assert torch.equal(get_stem(detector), get_stem(theirs))
    assert (settings.pixel_mean, settings.pixel_std) == tuple(
        tuple(pixels[key]) if pixels else None for key in ("pixel_mean", "pixel_std")
    )
    assert settings.weights_order == "rgb"
