import pytest
import torch
from torch import nn

from cellvision.compression.qat.plan import plan_rounding
from cellvision.compression.qat.watch import watch
from cellvision.errors import ConfigError
from cellvision.models.unet.blocks import Add, Cat


class Branches(nn.Module):
    """One narrow layer, two branches that are joined, pooled, and two heads."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.left, self.norm, self.left_relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.right = nn.Conv2d(4, 4, 1)
        self.cat, self.pool, self.idle = Cat(), nn.MaxPool2d(2), nn.Dropout(0.5)
        self.middle = nn.Conv2d(8, 4, 1)
        self.add = Add()
        self.one, self.two = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        maps = self.relu(self.first(images))
        left, right = self.left_relu(self.norm(self.left(maps))), self.right(maps)
        maps = self.middle(self.idle(self.pool(self.cat(left, right))))
        maps = self.add(maps, maps)
        return self.one(maps), self.two(maps[:, :, 1:])


def plan(**given):
    torch.manual_seed(0)
    net = Branches().eval()
    return plan_rounding(net, lambda: net(torch.rand(1, 1, 8, 8)), **given)


def test_layers_between_the_first_and_the_last_round():
    found = plan()
    assert list(found.layers) == ["left", "middle", "right"]
    assert not found.inputs


def test_what_lies_between_rounded_layers_rounds_once():
    found = plan()
    assert found.outputs == {"relu": False, "left_relu": False, "right": True, "cat": True, "middle": True}
    assert found.shared == {"pool": "cat"}


def test_a_layer_before_a_head_rounds_what_it_gives_behind_its_rectifier():
    net = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    assert plan_rounding(net, lambda: net(torch.rand(1, 8, 8, 8))).outputs == {"2": False}


def test_layers_kept_float_leave_the_others_with_rounded_inputs():
    found = plan(keep_float=["left", "ri*"])
    assert list(found.layers) == ["middle"]
    assert found.outputs["cat"]


def test_patterns_may_fit_the_same_layers():
    assert list(plan(keep_float=["left", "l*", "left"]).layers) == ["middle", "right"]


def test_an_input_that_no_module_made_is_rounded_where_it_goes_in():
    net = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    assert plan_rounding(net, lambda: net(torch.rand(1, 8, 8, 8))).inputs == {"0": False}
    assert plan_rounding(net, lambda: net(torch.randn(1, 8, 8, 8))).inputs == {"0": True}


def test_watching_leaves_no_trace():
    net = Branches().eval()
    calls = watch(net, lambda: net(torch.rand(1, 1, 8, 8)))
    assert [call.name for call in calls][:3] == ["first", "relu", "left"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4))
        self.pool = nn.MaxPool2d(1)

    def forward(self, images):
        for layer in self.layers:
            images = layer(self.pool(images))
        return images


def test_one_pooling_for_two_scales_passes_none_on():
    net = Reused().eval()
    found = plan_rounding(net, lambda: net(torch.rand(1, 4, 8, 8)))
    assert not found.shared
    assert list(found.inputs) == list(found.layers) == ["layers.0", "layers.1", "layers.2"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep_float": ["nose"]}, "compress.qat.keep_float has 'nose', which fits no layer; need .* such as "),
        ({"keep_float": ["right", "lft"]}, r"'lft', .* left, .*; try: compress.qat.keep_float=\[right,left\]"),
        ({"keep_float": ["*"]}, "not kept in float"),
        ({"keep_float": ["*", "left"]}, "not kept in float.* fewer names in compress.qat.keep_float"),
    ],
)
def test_nothing_left_or_unknown_layers_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        plan(**given)
