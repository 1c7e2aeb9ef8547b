"""What every bottom-up promises, whoever made it."""

import pytest
import timm
import torch
from torch import nn

from cellvision.errors import ConfigError, MissingExtraError
from cellvision.models.backbones.bottom_up import build_bottom_up, list_bottom_ups
from cellvision.models.backbones.norms import NORMS, FrozenBatchNorm

FAMILIES = ["vovnet19_slim", "vovnet19_slim_dw", "resnet18", "resnet50", "mobilenetv2"]
SEES_ALL = {"ese_vovnet19b_slim", "mobilenetv3_small_050"}
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def build(name, **changes):
    return build_bottom_up(name, **{"in_channels": 2, "levels": (2, 3, 4, 5), "norm": "batch", **changes})


@pytest.mark.parametrize("name", list_bottom_ups())
def test_widths_are_those_of_the_maps_asked_for(name):
    with torch.device("meta"):
        bottom_up = build(name, levels=(5, 3))
        found = bottom_up(torch.rand(1, 2, 64, 32))
    assert list(found) == [3, 5]
    assert {level: tuple(maps.shape) for level, maps in found.items()} == {
        level: (1, width, 64 >> level, 32 >> level) for level, width in bottom_up.widths.items()
    }


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_tiles_says_whether_the_far_end_is_seen(name, norm):
    torch.manual_seed(0)
    bottom_up = build(name, levels=(2, 3), norm=norm).eval()
    images = torch.rand(1, 2, 32, 768)
    changed = images.clone()
    changed[..., -64:] += 1
    with torch.no_grad():
        near, far = bottom_up(images)[3][..., 0], bottom_up(changed)[3][..., 0]
    assert torch.allclose(near, far, rtol=1e-5, atol=1e-6) == bottom_up.tiles
    assert bottom_up.tiles == (not name.startswith("vovnet") and norm != "group")


@pytest.mark.parametrize("name", [*FAMILIES, "resnet10t", "ese_vovnet19b_slim"])
def test_weights_fit_both_strides_of_the_stem(name):
    torch.manual_seed(0)
    coarse, fine = (build(name, stem_stride=stride).eval() for stride in (4, 2))
    fine.load_state_dict(coarse.state_dict())
    with torch.no_grad():
        sizes = [
            {level: tuple(maps.shape[2:]) for level, maps in net(torch.rand(1, 2, 64, 64)).items()}
            for net in (coarse, fine)
        ]
    assert sizes[0] == {2: (16, 16), 3: (8, 8), 4: (4, 4), 5: (2, 2)}
    assert sizes[1] == {2: (32, 32), 3: (16, 16), 4: (8, 8), 5: (4, 4)}
    assert (coarse.stem_stride, fine.stem_stride) == (4, 2)


FIRST_PARTS = {
    "vovnet19_slim": ["stem.", "stage2.", "stage3.", "stage4.", "stage5."],
    "resnet18": ["stem.", "res2.", "res3.", "res4.", "res5."],
    "resnet10t": [
        ("encoder.conv1.", "encoder.bn1."),
        "encoder.layer1.",
        "encoder.layer2.",
        "encoder.layer3.",
        "encoder.layer4.",
    ],
    "mobilenetv2": [
        ("features.0.", "features.1."),
        ("features.2.", "features.3."),
        ("features.4.", "features.5.", "features.6."),
        tuple(f"features.{index}." for index in range(7, 14)),
        tuple(f"features.{index}." for index in range(14, 18)),
    ],
}


@pytest.mark.parametrize("freeze_at", range(6))
@pytest.mark.parametrize("name", FIRST_PARTS)
def test_the_first_parts_are_frozen(name, freeze_at):
    bottom_up = build(name, freeze_at=freeze_at)
    frozen = tuple(
        start for part in FIRST_PARTS[name][:freeze_at] for start in ((part,) if isinstance(part, str) else part)
    )
    for path, parameter in bottom_up.named_parameters():
        assert parameter.requires_grad != path.startswith(frozen), path
    following = [path for path, module in bottom_up.named_modules() if isinstance(module, BATCH_NORMS)]
    assert not any(path.startswith(frozen) for path in following)
    assert bool(following) == (freeze_at < 5)


@pytest.mark.parametrize("name", ["resnet10t", "ese_vovnet19b_slim", "mobilenetv3_small_050"])
def test_encoders_of_timm_give_timms_maps_with_frozen_norms(name):
    torch.manual_seed(0)
    bottom_up = build(name, in_channels=3, levels=(3, 5), norm="frozen").train()
    reference = timm.create_model(name, features_only=True).eval()
    state = {f"encoder.{key}": value for key, value in reference.state_dict().items()}
    bottom_up.load_state_dict({key: value for key, value in state.items() if key in bottom_up.state_dict()})
    images = torch.rand(1, 3, 64, 32)
    strides = reference.feature_info.reduction()
    with torch.no_grad():
        found, expected = bottom_up(images), dict(zip(strides, reference(images), strict=True))
    assert list(found) == [3, 5]
    for level, maps in found.items():
        torch.testing.assert_close(maps, expected[2**level], rtol=1e-4, atol=1e-5)
    assert bottom_up.tiles == (name not in SEES_ALL)
    assert not any(isinstance(module, BATCH_NORMS) for module in bottom_up.modules())


def test_norms_of_timm_are_kept_or_joined_over_processes():
    for norm, kind in (("batch", nn.BatchNorm2d), ("sync", nn.SyncBatchNorm)):
        norms = [module for module in build("resnet10t", norm=norm).modules() if isinstance(module, BATCH_NORMS)]
        assert norms
        assert all(isinstance(module, kind) for module in norms)
    assert FrozenBatchNorm not in map(type, build("convnext_atto", norm="frozen").modules())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vovnet_39", {}, r"'vovnet_39' is unknown; need .*, vovnet99 or one of timm.*; try: model.backbone=vovnet39"),
        ("vovnet39", {"norm": "none"}, r"unknown model.norm 'none'; need one of: batch, frozen, group, sync"),
        ("vovnet39", {"in_channels": 0}, r"model.in_channels=0; need a whole number from 1 up"),
        ("vovnet39", {"levels": (1, 2)}, r"model.levels=\[1, 2\]; need some of \[2, 3, 4, 5\] for vovnet39"),
        ("vovnet39", {"levels": ()}, r"model.levels=\[\]; need some of \[2, 3, 4, 5\] for vovnet39"),
        ("vovnet39", {"stem_stride": 1}, r"model.stem_stride=1; need 4, or 2 for maps of twice the size"),
        ("vovnet39", {"freeze_at": 6}, r"model.freeze_at=6; need 0 .nothing., 1 .the stem. up to 5"),
        ("vovnet19_dw", {"deformable": True}, r"model.deformable=true with vovnet19_dw; need a VoVNet that is not"),
        ("resnet50", {"deformable": True}, r"model.deformable=true with resnet50; .*try: model.backbone=vovnet39"),
        ("convnext_atto", {"levels": (1, 2)}, r"levels=\[1, 2\] for .*'convnext_atto'; need some of its levels \[2, 3"),
        ("convnext_atto", {"freeze_at": 1}, r"freeze_at=1 with .*'convnext_atto'; need 0 or one of its levels \[2"),
        ("convnext_atto", {"stem_stride": 2}, r"stem_stride=2 with .*'convnext_atto', .* has stride \(4, 4\)"),
        ("resnet10t", {"norm": "group"}, r"model.norm=group with model.backbone='resnet10t'; need frozen, batch"),
        ("vit_tiny_patch16_224", {"levels": (4,)}, r"'vit_.*' fails on an image .*try: model.backbone=resnet18"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_named(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **changes)


def test_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r'timm is not installed.*pip install "cellvision\[train\]"'):
        build("resnet10t")
