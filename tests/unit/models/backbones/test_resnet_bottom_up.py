"""ResNet, ResNeXt and MobileNetV2 against torchvision's."""

import re

import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter

from cellvision.models.backbones.bottom_up import build_bottom_up

TAPS = {"layer1": "2", "layer2": "3", "layer3": "4", "layer4": "5"}


def settle(net):
    """Running statistics as after training, not the zeros and ones that hide a wrong order."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(std=0.1)
    return net.eval()


def to_detectron(name):
    name = re.sub(r"^conv1\.", "stem.conv1.", re.sub(r"^bn1\.", "stem.conv1.norm.", name))
    name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def to_flat(name):
    """MobileNetV2's published name, where convolution, norm and activation are not nested."""
    if match := re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(\d)\.(.+)", name):
        feature, group, part, leaf = match.groups()
        return f"features.{feature}.conv.{3 * int(group) + int(part)}.{leaf}"
    feature, index, leaf = re.fullmatch(r"features\.(\d+)\.conv\.(\d)\.(.+)", name).groups()
    groups = 1 if feature == "1" else 2  # widened first, in all features but the first
    return f"features.{feature}.conv.{3 * groups + int(index) - groups}.{leaf}"


def compare(bottom_up, state, reference):
    wanted = bottom_up.state_dict()
    bottom_up.load_state_dict({name: value for name, value in state.items() if name in wanted})
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = bottom_up.eval()(images), reference(images)
    assert list(found) == sorted(bottom_up.widths)
    for level, maps in found.items():
        torch.testing.assert_close(maps, expected[str(level)], rtol=1e-5, atol=1e-5)
        assert maps.shape[1] == bottom_up.widths[level]


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize(
    ("name", "levels"),
    [("resnet18", (2, 3, 4, 5)), ("resnet34", (3, 4)), ("resnet50", (3, 4, 5)), ("resnext50_32x4d", (2, 4))],
)
def test_maps_are_those_of_torchvision(name, levels, norm):
    torch.manual_seed(0)
    reference = settle(getattr(torchvision.models, name)())
    state = {to_detectron(key): value for key, value in reference.state_dict().items()}
    compare(
        build_bottom_up(name, in_channels=3, levels=levels, norm=norm), state, IntermediateLayerGetter(reference, TAPS)
    )


@pytest.mark.parametrize("name", ["resnet101", "resnet152", "resnext101_32x8d"])
def test_large_ones_have_the_shapes_of_torchvision(name):
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)().state_dict()
        found = build_bottom_up(name, in_channels=3, levels=(5,), norm="batch").state_dict()
    expected = {to_detectron(key): value.shape for key, value in reference.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in found.items()} == expected


def test_stride_in_the_first_convolution_halves_there():
    torch.manual_seed(0)
    reference = settle(torchvision.models.resnet50())
    state = {to_detectron(key): value for key, value in reference.state_dict().items()}
    for layer in (reference.layer2, reference.layer3, reference.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    bottom_up = build_bottom_up("resnet50", in_channels=3, levels=(3, 4, 5), norm="batch", stride_in_1x1=True)
    compare(bottom_up, state, IntermediateLayerGetter(reference, TAPS))


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_mobilenet_is_torchvisions(norm):
    torch.manual_seed(0)
    reference = settle(torchvision.models.mobilenet_v2())
    state = {
        key if key.startswith("features.0.") else to_flat(key): value
        for key, value in reference.state_dict().items()
        if re.match(r"features\.(\d|1[0-7])\.", key)
    }
    taps = {"3": "2", "6": "3", "13": "4", "17": "5"}
    bottom_up = build_bottom_up("mobilenetv2", in_channels=3, levels=(2, 3, 4, 5), norm=norm)
    compare(bottom_up, state, IntermediateLayerGetter(reference.features, taps))
    lacking = bottom_up.state_dict().keys() - state.keys()
    assert lacking == set()


@pytest.mark.parametrize(("name", "parts"), [("resnet50", {"stem", "res2", "res3"}), ("mobilenetv2", {"features"})])
def test_stages_behind_the_deepest_level_are_left_out(name, parts):
    bottom_up = build_bottom_up(name, in_channels=3, levels=(2, 3), norm="batch")
    assert {child for child, _ in bottom_up.named_children()} == parts
    if name == "mobilenetv2":
        assert len(bottom_up.features) == 7
