"""VoVNet against timm's, and its deformable layer against a plain convolution."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F

from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.backbones.vovnet import BODIES, AggregationBlock, DeformableLayer


def to_published(name, is_depthwise):
    """The published name of a tensor of timm's VoVNet, written out from the two naming schemes."""
    if name.startswith("stem."):
        _, index, part, leaf = name.split(".")
        split = is_depthwise and index != "0"
        part = {"conv": "conv", "bn": "pw_norm" if split else "norm", "conv_dw": "dw_conv3x3", "conv_pw": "pw_conv1x1"}[
            part
        ]
        return f"stem.stem_{int(index) + 1}/{part}.{leaf}"
    stage, block, rest = re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", name).groups()
    osa = f"OSA{int(stage) + 2}_{int(block) + 1}"
    start = f"stage{int(stage) + 2}.{osa}"
    if rest.startswith("attn.fc."):
        return f"{start}.ese.fc.{rest.split('.')[-1]}"
    if rest.startswith("conv_mid."):
        _, index, part, leaf = rest.split(".")
        part = {
            "conv": "conv",
            "bn": "pw_norm" if is_depthwise else "norm",
            "conv_dw": "dw_conv3x3",
            "conv_pw": "pw_conv1x1",
        }[part]
        return f"{start}.layers.{index}.{osa}_{index}/{part}.{leaf}"
    kind, part, leaf = rest.split(".")
    part = {"conv": "conv", "bn": "norm"}[part]
    if kind == "conv_concat":
        return f"{start}.concat.{osa}_concat/{part}.{leaf}"
    assert kind == "conv_reduction"
    return f"{start}.conv_reduction.{osa}_reduction_0/{part}.{leaf}"


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("vovnet19_slim", "ese_vovnet19b_slim"),
        ("vovnet19_slim_dw", "ese_vovnet19b_slim_dw"),
        ("vovnet19_dw", "ese_vovnet19b_dw"),
        ("vovnet39", "ese_vovnet39b"),
    ],
)
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_maps_are_those_of_timm(name, theirs, norm):
    torch.manual_seed(0)
    encoder = timm.create_model(theirs, num_classes=0).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    state = {
        to_published(key, name.endswith("dw")): value
        for key, value in encoder.state_dict().items()
        if not (norm == "frozen" and key.endswith("num_batches_tracked"))
    }
    bottom_up = build_bottom_up(name, in_channels=3, levels=(3, 4, 5), norm=norm).eval()
    lacking = bottom_up.load_state_dict(state, strict=False)
    assert lacking.unexpected_keys == []
    for key in lacking.missing_keys:  # timm's have no excitation in a block that is not the last of its stage
        assert re.fullmatch(r"stage[45]\.OSA[45]_1\.ese\.fc\.(weight|bias)", key), key
        bottom_up.get_parameter(key).data.fill_(3.0 if key.endswith("bias") else 0.0)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = [encoder.stem(images)]
        for stage in encoder.stages:
            expected.append(stage(expected[-1]))
        found = bottom_up(images)
    assert list(found) == [3, 4, 5]
    for level, maps in found.items():
        assert torch.equal(maps, expected[level - 1])


@pytest.mark.parametrize("deformable", [False, True])
def test_deformable_layers_are_in_the_stages_3_to_5(deformable):
    bottom_up = build_bottom_up("vovnet39", in_channels=1, levels=(5,), norm="frozen", deformable=deformable)
    places = [name for name, module in bottom_up.named_modules() if isinstance(module, DeformableLayer)]
    blocks = sum(BODIES["vovnet39"].blocks[1:])
    assert len(places) == (blocks * 5 if deformable else 0)
    assert {name.split(".")[0] for name in places} == ({"stage3", "stage4", "stage5"} if deformable else set())


CHANNELS = {"down": slice(0, 18, 2), "right": slice(1, 18, 2), "looks": slice(18, 27)}


def build_deformable(**changes):
    torch.manual_seed(0)
    layer = DeformableLayer(name="x", in_channels=3, channels=4, norm="frozen")
    for part, value in changes.items():
        layer.get_submodule("x/conv_offset").bias.data[CHANNELS[part]] = value
    return layer


def test_deformable_layer_starts_as_half_a_plain_convolution():
    layer, maps = build_deformable(), torch.randn(2, 3, 6, 7)
    plain = F.conv2d(maps, layer.get_submodule("x/conv").weight, padding=1)
    torch.testing.assert_close(layer(maps), F.relu(plain / 2), rtol=1e-4, atol=1e-5)


def test_deformable_layer_looks_where_it_is_told_to():
    layer, maps = build_deformable(down=1.0, right=-2.0, looks=50.0), torch.randn(1, 3, 8, 9)
    moved = torch.zeros_like(maps)
    moved[:, :, :-1, 2:] = maps[:, :, 1:, :-2]
    plain = F.relu(F.conv2d(moved, layer.get_submodule("x/conv").weight, padding=1))
    torch.testing.assert_close(layer(maps)[:, :, 1:-2, 3:-1], plain[:, :, 1:-2, 3:-1], rtol=1e-4, atol=1e-5)


def test_every_parameter_of_a_deformable_net_learns():
    bottom_up = build_bottom_up("vovnet39", in_channels=2, levels=(3, 4, 5), norm="batch", deformable=True)
    sum(maps.square().mean() for maps in bottom_up(torch.rand(2, 2, 64, 64)).values()).backward()
    assert [name for name, parameter in bottom_up.named_parameters() if parameter.grad is None] == []


def test_identity_sum_is_behind_the_excitation_of_later_blocks_only():
    blocks = dict(build_bottom_up("vovnet57", in_channels=1, levels=(5,), norm="frozen").named_modules())
    adds = {
        name.split(".")[-1]: block.add is not None for name, block in blocks.items() if type(block) is AggregationBlock
    }
    assert adds == {name: not name.endswith("_1") for name in adds}
    assert len(adds) == sum(BODIES["vovnet57"].blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_deformable_layer_takes_half_precision(dtype):
    """Alone in that type and under autocast; torchvision has neither type of it on the CPU."""
    layer, maps = build_deformable(down=0.3, right=-0.6), torch.randn(2, 3, 6, 7)
    expected = layer(maps)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(layer(maps).float(), expected, rtol=0.02, atol=0.02)
    found = layer.to(dtype)(maps.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
