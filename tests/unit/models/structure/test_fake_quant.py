import copy

import numpy as np
import pytest
import torch
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_21 as DequantizeLinear
from onnx.reference.ops.op_quantize_linear import QuantizeLinear_21 as QuantizeLinear
from torch import nn

from cellvision.errors import ConfigError
from cellvision.models.structure.fake_quant import (
    FakeQuant,
    QuantPlan,
    find_fake_quants,
    set_fake_quant,
    set_phase,
)
from cellvision.models.structure.rounded_layers import round_weight


def build_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(6, 5, 2, stride=2))


PLAN = QuantPlan(layers=["0", "3"], inputs={"0": True}, outputs={"1": False}, shared={"2": "1"})


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 4, 3, 3)), (1, (4, 3, 2, 2)), (0, (3, 7))])
def test_weights_lie_on_a_grid_of_255_steps_for_each_channel_as_onnx_defines_it(axis, shape):
    weight = torch.randn(shape)
    rounded, steps = round_weight(weight, axis)
    zeros = np.zeros(3, np.int8)
    integers = QuantizeLinear.eval(weight.numpy(), steps.numpy(), zeros, axis=axis)
    assert np.abs(integers.astype(int)).max() == 127
    assert np.allclose(rounded, DequantizeLinear.eval(integers, steps.numpy(), zeros, axis=axis))


def test_rounding_a_weight_commutes_with_scaling_its_channels():
    weight, factor = torch.randn(3, 4, 3, 3), torch.tensor([0.1, -3.0, 7.0]).view(-1, 1, 1, 1)
    assert torch.allclose(round_weight(weight * factor, 0)[0], round_weight(weight, 0)[0] * factor, rtol=1e-4)


@pytest.mark.parametrize(("signed", "low"), [(False, 0.0), (True, -2.0)])
def test_an_activation_has_256_values_and_keeps_its_ends(signed, low):
    quant = FakeQuant(signed=signed)
    maps = torch.linspace(low, 2.0, 5000).view(1, 1, 50, 100)
    found = quant(maps)
    assert found.unique().numel() == (255 if signed else 256)
    assert (found - maps).abs().max() <= quant.step / 2 * 1.001
    assert found.max() == pytest.approx(2.0)


def test_the_gradient_stops_outside_the_range():
    quant = FakeQuant(signed=False)
    quant(torch.tensor([[0.0, 1.0]]))
    quant.eval()
    maps = torch.tensor([[-0.5, 0.5, 1.5]], requires_grad=True)
    quant(maps).sum().backward()
    assert maps.grad.tolist() == [[0.0, 1.0, 0.0]]


def test_ranges_follow_the_batches_only_while_training_and_observing():
    quant = FakeQuant(signed=False)
    quant(torch.tensor([[2.0]]))
    quant(torch.tensor([[4.0]]))
    assert quant.bound == pytest.approx(2.02)
    set_phase(quant, observing=False, rounding=True)
    quant(torch.tensor([[9.0]]))
    quant.observing = True
    quant.eval()(torch.tensor([[9.0]]))
    quant.train()(torch.tensor([[float("inf")]]))
    assert quant.bound == pytest.approx(2.02)


def test_a_net_keeps_its_parameters_and_their_names():
    net = build_net()
    before = dict(net.named_parameters())
    set_fake_quant(net, PLAN)
    after = dict(net.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert after.keys() == before.keys()
    assert set(net.state_dict()) - set(before) == {"0.input_quant.bound", "1.output_quant.bound"}


def test_the_plan_as_plain_data_gives_the_same_net_again():
    net = build_net()
    set_fake_quant(net, PLAN)
    net(torch.randn(2, 4, 12, 12))
    again = build_net()
    set_fake_quant(again, QuantPlan(**PLAN.to_plain()))
    again.load_state_dict(net.state_dict())
    images = torch.randn(2, 4, 12, 12)
    for one in (copy.deepcopy(net), again):
        assert torch.equal(one.eval()(images), net.eval()(images))
    assert len(list(find_fake_quants(again))) == 2


def test_half_rounded_nets_are_as_the_float_net_until_rounding_begins():
    net, images = build_net(), torch.randn(2, 4, 12, 12)
    expected = net(images)
    plan = QuantPlan(inputs={"0": True}, outputs={"1": False})
    set_fake_quant(net, plan)
    set_phase(net, observing=True, rounding=False)
    assert torch.equal(net(images), expected)
    set_phase(net, observing=True, rounding=True)
    assert not torch.equal(net(images), expected)


@pytest.mark.parametrize(
    ("plan", "said"),
    [(QuantPlan(layers=["9"]), "names '9'"), (QuantPlan(layers=["1"]), "layer 1 is a ReLU")],
)
def test_plans_of_other_nets_are_refused(plan, said):
    with pytest.raises(ConfigError, match=said):
        set_fake_quant(build_net(), plan)
