"""Ranges from batches: the largest value, or a percentile, of all that a module gives out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cellvision.compression.qat.calibrate import BINS, calibrate
from cellvision.models.structure.fake_quant import QuantPlan, find_fake_quants, set_fake_quant


class Twice(nn.Module):
    """Uses one module for small values and then for large ones, as towers that levels share do."""

    def __init__(self, *, signed, learned=False):
        super().__init__()
        self.shared, self.never = nn.Identity(), nn.Identity()
        outputs = {"shared": signed, "never": False}
        set_fake_quant_without_weights(self, QuantPlan(outputs=outputs, learned=learned))

    def losses(self, images, targets):
        assert not self.training
        self.shared(images)
        self.shared(images * targets)
        return {}


def set_fake_quant_without_weights(net, plan):
    net.register_parameter("any", nn.Parameter(torch.zeros(())))
    set_fake_quant(net, plan)


def build_batches(factors):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2, 3, 40, 50, generator=generator) for _ in factors]
    return [SimpleNamespace(images=each, targets=factor) for each, factor in zip(images, factors, strict=True)]


def list_values(batches, signed):
    values = np.concatenate([(one.images * f).flatten().numpy() for one in batches for f in (1.0, one.targets)])
    return np.abs(values) if signed else values.clip(0)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_the_range_holds_the_largest_value_of_every_use_in_every_batch(signed, learned):
    net, batches = Twice(signed=signed, learned=learned), build_batches([3.0, 0.5, 2.0])
    calibrate(net, batches)
    shared, never = find_fake_quants(net)
    assert shared.bound.item() == pytest.approx(list_values(batches, signed).max())
    assert never.bound == 0
    assert net.training
    assert shared.observing
    assert shared.rounding


@pytest.mark.parametrize("percentile", [60.01, 99.01, 99.87, 100.0])
@pytest.mark.parametrize("signed", [False, True])
def test_a_percentile_is_that_of_numpy_to_a_bin(signed, percentile):
    net, batches = Twice(signed=signed), build_batches([3.0, 0.5, 2.0])
    calibrate(net, batches, method="percentile", percentile=percentile)
    shared, never = find_fake_quants(net)
    values = list_values(batches, signed)
    exact = np.percentile(values, percentile, method="inverted_cdf")
    assert exact <= shared.bound.item() * (1 + 1e-6)
    assert shared.bound.item() <= exact + 1.01 * values.max() / BINS
    assert never.bound == 0


def test_what_is_not_finite_is_left_out_and_what_was_learned_before_forgotten():
    net, batches = Twice(signed=True, learned=True), build_batches([1.0, 2.0, 1.0])
    batches[2].images[0, 0, 0, 0] = torch.inf
    shared, _ = find_fake_quants(net)
    shared.bound.fill_(99.0)
    shared.growth.data.fill_(1.0)
    for method in ("minmax", "percentile"):
        calibrate(net, batches, method=method, percentile=100.0)
        assert shared.bound.item() == pytest.approx(list_values(batches[:2], True).max())
        assert shared.growth == 0
