"""The bridge to timm's encoders."""

import pytest
import timm
import torch

from cellvision.errors import ConfigError, MissingExtraError
from cellvision.models.backbones.timm import TimmBackbone
from cellvision.models.build import BACKBONES, build_model

CLASSES = ("background", "cell")


def build_unet(encoder, depth=3, **arguments):
    return build_model(
        name="unet",
        in_channels=2,
        classes=CLASSES,
        widths=(4, 8, 8, 8, 8, 8)[: depth + 1],
        encoder=encoder,
        **arguments,
    )


@pytest.mark.parametrize(
    ("encoder", "widths", "tiles"),
    [
        ("resnet10t", {1: 64, 2: 64, 3: 128}, True),
        ("convnext_atto", {2: 40, 3: 80}, True),
        ("convnextv2_atto", {2: 40, 3: 80}, False),  # global response normalisation, switched off until trained
        ("mobilenetv3_small_050", {1: 16, 2: 8, 3: 16}, False),  # squeeze-and-excitation
    ],
)
def test_levels_and_whether_the_whole_image_is_seen(encoder, widths, tiles):
    backbone = BACKBONES.build("timm", encoder=encoder, in_channels=2, max_level=3)
    assert backbone.training
    assert (backbone.widths, backbone.tiles) == (widths, tiles)
    maps = backbone(torch.rand(2, 2, 32, 64))
    assert {level: tuple(found.shape) for level, found in maps.items()} == {
        level: (2, width, 32 >> level, 64 >> level) for level, width in widths.items()
    }


def test_maps_are_those_of_timm():
    torch.manual_seed(0)
    backbone = TimmBackbone(encoder="mobilenetv3_small_050", in_channels=3, max_level=3).eval()
    whole = timm.create_model("mobilenetv3_small_050", features_only=True).eval()
    whole.load_state_dict({**whole.state_dict(), **backbone.encoder.state_dict()})
    images = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        for found, expected in zip(backbone(images).values(), whole(images)[:3], strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "encoder", ["resnet10t", "convnext_atto", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]
)
def test_unet_comes_back_to_full_size_and_every_parameter_learns(encoder):
    net = build_unet(encoder, attention="gate")
    images = torch.rand(2, 2, 45, 33) * 255
    found = net(images)["probabilities"]
    assert found.shape == (2, 2, 45, 33)
    (found * torch.rand_like(found)).sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_unet_is_rebuilt_from_its_config_without_a_download(monkeypatch):
    create, asked = timm.create_model, []

    def create_offline(name, *, pretrained, **arguments):
        asked.append(pretrained)
        return create(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", create_offline)
    net = build_unet("resnet10t", pretrained=True).eval()
    assert any(asked)
    asked.clear()
    copy = build_model(**net.config).eval()
    assert not any(asked)
    copy.load_state_dict(net.state_dict())
    images = torch.rand(1, 2, 20, 20)
    assert torch.equal(net(images)["probabilities"], copy(images)["probabilities"])


@pytest.mark.parametrize(
    ("encoder", "depth", "message"),
    [
        (
            "resnet81",
            3,
            r"model.encoder='resnet81' is unknown; need null .* or .*such as (\w+, ){4}\w+; try: model.encoder=\w+$",
        ),
        ("resnet18.none", 3, r"'resnet18.none' with pretrained=False cannot be made .*Invalid pretrained tag"),
        (
            "convnext_atto",
            1,
            r"model.widths has 2 entries .*in number one of 3, 4, 5, 6; try: .*=\[16, 32, 64, 128, 256, 512\]",
        ),
        (
            "vit_tiny_patch16_224",
            4,
            r"fails on an image of 16x1024 px .*; need an encoder that takes images of any size",
        ),
    ],
)
def test_unusable_encoders_are_named(encoder, depth, message):
    with pytest.raises(ConfigError, match=message):
        build_unet(encoder, depth)


def test_maps_of_another_shape_are_refused(monkeypatch):
    create = timm.create_model

    def create_wrong(name, **arguments):
        net = create(name, **arguments)
        net.register_forward_hook(lambda _, __, maps: [found[:, :, 1:] for found in maps])
        return net

    monkeypatch.setattr(timm, "create_model", create_wrong)
    with pytest.raises(ConfigError, match=r"'resnet10t' gives \(2, 64, 1, 512\) where \(2, 64, 2, 512\) is expected"):
        build_unet("resnet10t", depth=2)


def test_weights_that_cannot_be_had_are_named(monkeypatch):
    create = timm.create_model

    def fail(name, *, pretrained, **arguments):
        if pretrained:
            raise OSError("no network")
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ConfigError, match=r"pretrained=True cannot be made \(OSError: no network\).*pretrained=false"):
        build_unet("resnet10t", pretrained=True)


def test_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r'timm is not installed.*pip install "cellvision\[train\]"'):
        build_unet("resnet10t")
