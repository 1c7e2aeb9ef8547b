"""The feature pyramid against torchvision's."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from cellvision.errors import ConfigError, ShapeError
from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.backbones.fpn import FPN


class Slices(nn.Module):
    """A bottom-up without weights: the image, made smaller, in as many channels as asked for."""

    tiles = True

    def __init__(self, widths, stem_stride=4):
        super().__init__()
        self.widths, self.stem_stride = widths, stem_stride

    def forward(self, images):
        return {
            level: F.avg_pool2d(images, self.stem_stride << level >> 2).mean(1, keepdim=True).repeat(1, width, 1, 1)
            for level, width in self.widths.items()
        }


def build_both(levels):
    """Our pyramid and torchvision's with its weights."""
    torch.manual_seed(0)
    widths = {level: 4 * level for level in levels}
    ours = FPN(bottom_up=Slices(widths), levels=levels, out_channels=8)
    theirs = FeaturePyramidNetwork(list(widths.values()), 8, extra_blocks=LastLevelP6P7(8, 8))
    for index, level in enumerate(levels):
        ours.get_submodule(f"fpn_lateral{level}").load_state_dict(theirs.inner_blocks[index][0].state_dict())
        ours.get_submodule(f"fpn_output{level}").load_state_dict(theirs.layer_blocks[index][0].state_dict())
    for block in ("p6", "p7"):
        ours.top_block.get_submodule(block).load_state_dict(getattr(theirs.extra_blocks, block).state_dict())
    return ours, theirs


@pytest.mark.parametrize("levels", [(3, 4, 5), (2, 3, 4, 5), (5,)])
def test_maps_and_gradients_are_those_of_torchvision(levels):
    ours, theirs = build_both(levels)
    images = torch.randn(2, 3, 64, 96)
    results = []
    for net, run in ((ours, ours), (theirs, lambda given: theirs(OrderedDict(ours.bottom_up(given).items())))):
        given = images.clone().requires_grad_()
        maps = run(given)
        loss = sum(found.square().sum() for found in maps.values())
        results.append(([*maps.values()], torch.autograd.grad(loss, [given])[0]))
        assert net is not theirs or len(maps) == len(levels) + 2
    torch.testing.assert_close(*results)
    assert list(ours(images)) == [*levels, 6, 7]


@pytest.mark.parametrize(("stem_stride", "divisibility"), [(4, 32), (2, 16)])
@pytest.mark.parametrize("name", ["vovnet19_slim_dw", "resnet18", "mobilenetv2", "resnet10t"])
def test_strides_tell_the_sizes(name, stem_stride, divisibility):
    bottom_up = build_bottom_up(name, in_channels=2, levels=(2, 3, 4, 5), norm="batch", stem_stride=stem_stride)
    pyramid = FPN(bottom_up=bottom_up, levels=(2, 3, 4, 5), out_channels=8)
    assert (pyramid.levels, pyramid.out_channels) == ((2, 3, 4, 5, 6, 7), 8)
    assert pyramid.strides == {level: stem_stride * 2 ** (level - 2) for level in pyramid.levels}
    assert (pyramid.size_divisibility, pyramid.tiles) == (divisibility, bottom_up.tiles)
    found = pyramid(torch.rand(2, 2, 96, 64))
    assert list(found) == list(pyramid.levels)
    for level, maps in found.items():
        stride = pyramid.strides[level]
        assert maps.shape == (2, 8, -(-96 // stride), -(-64 // stride))


@pytest.mark.parametrize("top_levels", [0, 1, 2])
def test_levels_on_top_are_as_many_as_asked_for(top_levels):
    pyramid = FPN(bottom_up=Slices({2: 4, 3: 4}), levels=(3, 2), out_channels=4, top_levels=top_levels)
    assert pyramid.levels == (2, 3, 4, 5)[: 2 + top_levels]
    assert list(pyramid(torch.rand(1, 1, 16, 16))) == list(pyramid.levels)
    weights = [name for name, _ in pyramid.top_block.named_parameters()]
    assert weights == ["p4.weight", "p4.bias", "p5.weight", "p5.bias"][: 2 * top_levels]


def test_mean_of_two_levels_is_half_their_sum():
    ours, _ = build_both((4, 5))
    mean = FPN(bottom_up=ours.bottom_up, levels=(4, 5), out_channels=8, fuse="avg")
    mean.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        given = ours.bottom_up(images)
        coarse = ours.fpn_lateral5(given[5])
        expected = ours.fpn_output4(
            (ours.fpn_lateral4(given[4]) + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)) / 2
        )
        torch.testing.assert_close(mean(images)[4], expected)


def test_convolutions_start_as_in_detectron2():
    torch.manual_seed(0)
    pyramid = FPN(bottom_up=Slices({3: 64, 4: 64, 5: 64}), out_channels=64)
    for name, module in pyramid.named_modules():
        if isinstance(module, nn.Conv2d):
            bound = (3 / module.weight[0].numel()) ** 0.5
            assert module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name
            assert not module.bias.any()


def test_image_of_another_size_is_refused():
    pyramid = FPN(bottom_up=Slices({3: 4, 4: 4, 5: 4}), out_channels=4)
    with pytest.raises(ShapeError, match=r"images are 64x40 px; need multiples of 32 px for levels \[3, 4, 5\]"):
        pyramid(torch.rand(1, 1, 64, 40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (3, 4, 6)}, r"model.levels=\[3, 4, 6\]; need some of the bottom-up's \[3, 4, 5\]"),
        ({"levels": (3, 5)}, r"model.levels=\[3, 5\]; need levels one after the other, none twice"),
        ({"levels": (4, 4)}, r"need levels one after the other, none twice"),
        ({"levels": ()}, r"model.levels=\[\]; need levels one after the other"),
        ({"out_channels": 0}, r"model.fpn_channels=0; need a whole number from 1 up"),
        ({"top_levels": 3}, r"model.top_levels=3; need 0, 1 or 2"),
        ({"fuse": "max"}, r"unknown model.fuse 'max'; need one of: avg, sum"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        FPN(**{"bottom_up": Slices({3: 4, 4: 4, 5: 4}), "out_channels": 4, **changes})


def test_exports_with_sizes_left_open():
    bottom_up = build_bottom_up("vovnet19_slim_dw", in_channels=1, levels=(3, 4, 5), norm="frozen")
    pyramid = FPN(bottom_up=bottom_up, out_channels=8).eval()
    sizes = {2: 32 * torch.export.Dim("rows", min=5, max=9), 3: 32 * torch.export.Dim("columns", min=5, max=9)}
    graph = torch.export.export(pyramid, (torch.rand(1, 1, 192, 224),), dynamic_shapes=[sizes]).module()
    images = torch.rand(1, 1, 256, 160)
    with torch.no_grad():
        torch.testing.assert_close(list(graph(images).values()), list(pyramid(images).values()))
