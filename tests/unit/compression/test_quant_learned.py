"""Learned ranges: where they settle, at the learning rate that quantisation has by default."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from cellvision.models.structure.fake_quant import GAIN, FakeQuant, QuantPlan, find_fake_quants, set_fake_quant
from cellvision.training.optim import Optim

CONF = Path(__file__).parents[3] / "conf"
STEPS = 120


def find_lr():
    """The peak learning rate of the step in a run whose settings are all defaults."""
    optim, step = (OmegaConf.load(CONF / path) for path in ("optim/adamw.yaml", "compress/qat.yaml"))
    return optim.lr * step.lr


def find_best_bound(values, signed):
    """By trying: the bound whose rounding, by numpy, has the smallest squared error."""
    low, high = (-128, 127) if signed else (0, 255)
    bounds = np.geomspace(0.3, 1.2, 300) * np.abs(values).max()
    errors = [np.square(np.clip(np.rint(values / (b / high)), low, high) * (b / high) - values).mean() for b in bounds]
    return bounds[int(np.argmin(errors))]


def train(quant, maps, *, unit=1.0, steps=STEPS):
    """What the range is in ``unit`` after each step of lowering the rounding error; the first is before all."""
    optimizer = Optim(lr=find_lr()).build_optimizer(quant)
    found = [quant.step.item() * quant.levels[1] / unit]
    for _ in range(steps):
        optimizer.zero_grad()
        ((quant(maps) - maps) / unit).square().mean().backward()
        optimizer.step()
        found.append(quant.step.item() * quant.levels[1] / unit)
    return np.array(found)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("factor", "end"), [(3.0, (0.9, 1.1)), (1 / 3, (0.75, 1.1))])
def test_a_range_too_wide_shrinks_and_one_too_narrow_grows_to_the_best(signed, factor, end):
    """Beyond three quarters of the best lie 3 in 1000 of these values: they pull little."""
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 32, 32) if signed else torch.randn(2, 3, 32, 32).relu()
    best = find_best_bound(maps.numpy(), signed)
    quant = FakeQuant(signed=signed, learned=True)
    quant(maps * best * factor / maps.abs().max())
    found = train(quant, maps) / best
    assert found[0] == pytest.approx(factor, rel=1e-5)
    assert abs(np.log(found[50])) < abs(np.log(factor)) / 2
    assert end[0] < found[-20:].min() <= found[-20:].max() < end[1]
    # No faster than is said where the gain is defined: a range cannot run away within a few batches.
    assert np.abs(np.diff(np.log(found))).max() < 1.1 * GAIN * find_lr()


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_how_fast_does_not_depend_on_the_unit_of_the_values(scale):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 16, 16)
    ends = []
    for unit in (1.0, scale):
        quant = FakeQuant(signed=True, learned=True)
        quant(maps * 3 * unit)
        ends.append(train(quant, maps * unit, unit=unit, steps=10)[-1])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)
    assert ends[0] < 0.9 * 3 * maps.abs().max().item()


def test_the_gradient_of_values_is_that_of_a_range_that_is_not_learned():
    torch.manual_seed(0)
    maps, weights = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    grads, outputs = [], []
    for learned in (False, True):
        quant = FakeQuant(signed=True, learned=learned)
        quant(maps / 2)
        given = maps.clone().requires_grad_()
        found = quant.eval()(given)
        (found * weights).sum().backward()
        outputs.append(found.detach())
        grads.append(given.grad)
    assert torch.allclose(*outputs, rtol=1e-6, atol=1e-6)
    assert torch.allclose(*grads, rtol=1e-5, atol=1e-6)


def test_what_was_learned_is_saved_and_restored():
    def build():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU())
        set_fake_quant(net, QuantPlan(layers=["0"], inputs={"0": True}, outputs={"1": False}, learned=True))
        return net

    net, images = build(), torch.randn(2, 2, 8, 8)
    net(images)
    for quant in find_fake_quants(net):
        train(quant, images * 0.3, steps=5)
    state = net.state_dict()
    assert {name for name in state if "quant" in name} == {
        "0.input_quant.bound", "0.input_quant.growth", "1.output_quant.bound", "1.output_quant.growth",
    }  # fmt: skip
    assert state["0.input_quant.growth"] < 0
    again = build()
    again.load_state_dict(state)
    assert torch.equal(again.eval()(images), net.eval()(images))
