"""Frozen batch normalisation against torchvision's and PyTorch's own."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cellvision.errors import ConfigError
from cellvision.models.backbones.norms import NORMS, FrozenBatchNorm, build_norm, explain_lone_values, freeze


def fill(norm, seed=0):
    """Statistics, scale and offset as after training."""
    generator = torch.Generator().manual_seed(seed)
    for value in (*norm.buffers(), *norm.parameters()):
        if value.dim():
            value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return norm


@pytest.mark.parametrize("asks", [False, True])
def test_frozen_is_torchvisions_forth_and_back(asks):
    ours = fill(FrozenBatchNorm(6))
    theirs = FrozenBatchNorm2d(6)
    theirs.load_state_dict(ours.state_dict())
    maps = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(1))
    found, expected = [], []
    for norm, results in ((ours, found), (theirs, expected)):
        given = maps.clone().requires_grad_(asks)
        results.append(norm(given))
        if asks:
            results.append(torch.autograd.grad(results[0].square().sum(), given)[0])
    torch.testing.assert_close(found, expected)


def test_frozen_is_the_same_with_and_without_gradients_and_in_both_modes():
    norm = fill(FrozenBatchNorm(6))
    maps = torch.randn(2, 6, 5, 4).requires_grad_()
    with torch.no_grad():
        expected = norm.eval()(maps)
    torch.testing.assert_close(norm.train()(maps), expected)
    assert list(norm.parameters()) == []


def test_frozen_starts_as_identity_and_keeps_the_dtype():
    maps = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(build_norm("frozen", 4)(maps), maps, rtol=1e-6, atol=1e-6)
    for asks in (False, True):
        assert build_norm("frozen", 4)(maps.bfloat16().requires_grad_(asks)).dtype == torch.bfloat16


def test_frozen_keeps_no_map_for_the_way_back():
    kept = []
    norm, maps = FrozenBatchNorm(4), torch.randn(1, 4, 8, 8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.numel()), lambda _: None):
        norm(maps)
    assert max(kept) == 4


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("channels", [16, 24, 112, 256])
def test_every_norm_takes_every_width(norm, channels):
    layer = build_norm(norm, channels)
    assert layer(torch.randn(2, channels, 3, 2)).shape == (2, channels, 3, 2)
    if norm == "group":
        assert layer.num_groups == {16: 16, 24: 8, 112: 16, 256: 32}[channels]


def test_unknown_norm_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown model.norm 'layer'; need one of: batch, frozen, group, sync"):
        build_norm("layer", 8)


@pytest.mark.parametrize("kind", ["batch", "sync"])
def test_a_frozen_part_learns_nothing_and_does_not_follow_the_batches(kind):
    part = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Sequential(fill(build_norm(kind, 4)), nn.ReLU()))
    images = torch.randn(2, 3, 8, 8)
    expected = copy.deepcopy(part).eval()(images)
    assert freeze(part) is part
    torch.testing.assert_close(part.train()(images), expected)
    torch.testing.assert_close(part(images), expected)
    assert not any(parameter.requires_grad for parameter in part.parameters())
    assert type(part[1][0]) is FrozenBatchNorm


def test_freezing_keeps_group_normalisation_and_stops_its_training():
    part = freeze(nn.Sequential(build_norm("group", 8)))
    assert isinstance(part[0], nn.GroupNorm)
    assert not part[0].weight.requires_grad


def test_a_batch_of_one_value_is_explained():
    with (
        pytest.raises(ConfigError, match=r"^a training batch of one image, .*; need .*; try: model\.norm=group"),
        explain_lone_values(),
    ):
        build_norm("batch", 4)(torch.zeros(1, 4, 1, 1))


def test_other_errors_are_left_alone():
    with pytest.raises(ValueError, match=r"^something else$"), explain_lone_values():
        raise ValueError("something else")
