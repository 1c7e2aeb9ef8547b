"""The blocks against torchvision's, with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.swin_transformer import PatchMerging as TorchvisionMerging
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformerBlock

from cellvision.models.swin_unet.attention import WindowAttention
from cellvision.models.swin_unet.stages import PatchExpanding, PatchMerging, Stage


@pytest.fixture(autouse=True)
def start():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def build_pair(window, shift):
    """torchvision's attention and ours, with equal weights; the table of positions is made to matter."""
    theirs = ShiftedWindowAttention(12, list(window), list(shift), 3)
    theirs.relative_position_bias_table.normal_()
    ours = WindowAttention(12, list(window), list(shift), 3)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(
    ("window", "shift", "size"),
    [((4, 4), (0, 0), (8, 12)), ((4, 4), (2, 2), (8, 12)), ((7, 7), (3, 3), (21, 14)), ((2, 4), (1, 2), (4, 16))],
)
def test_attention_is_that_of_torchvision(window, shift, size):
    theirs, ours = build_pair(window, shift)
    maps = torch.randn(2, *size, 12)
    torch.testing.assert_close(ours(maps), theirs(maps), rtol=1e-5, atol=1e-6)


def test_a_map_of_one_window_is_seen_as_the_corner_of_a_larger_one():
    """There torchvision leaves the shift out, and the corner would get another result."""
    theirs, ours = build_pair((4, 4), (2, 2))
    maps = torch.randn(1, 12, 12, 12)
    corner = ours(maps[:, :4, :4])[:, :2, :2]
    torch.testing.assert_close(corner, theirs(maps)[:, :2, :2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(theirs(maps[:, :4, :4])[:, :2, :2], corner, atol=1e-3)


def test_a_stage_is_blocks_of_torchvision_shifted_in_turn():
    stage = Stage(12, heads=3, window=4, mlp_ratio=2.0, drop_paths=[0.0, 0.1, 0.2]).eval()
    shifts = [block.attn.shift_size for block in stage]
    assert shifts == [[0, 0], [2, 2], [0, 0]]
    assert [block.stochastic_depth.p for block in stage] == [0.0, 0.1, 0.2]
    blocks = [SwinTransformerBlock(12, 3, [4, 4], shift, mlp_ratio=2.0).eval() for shift in shifts]
    theirs = nn.Sequential(*blocks)
    theirs.load_state_dict(stage.state_dict())
    maps = torch.randn(2, 12, 8, 16)
    expected = theirs(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(stage(maps), expected, rtol=1e-5, atol=1e-5)


def test_merging_is_that_of_torchvision():
    ours, theirs = PatchMerging(6, 12), TorchvisionMerging(6)
    ours.norm.weight.normal_()
    theirs.norm.load_state_dict(ours.norm.state_dict())
    theirs.reduction.weight.copy_(ours.reduction.weight[:, :, 0, 0])
    maps = torch.randn(2, 6, 8, 10)
    expected = theirs(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours(maps), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_expanding_is_a_linear_layer_whose_channels_become_neighbours(factor):
    """As the paper tells it: C to factor^2 * C' channels, laid out as a square, then a layer normalisation."""
    expanding = PatchExpanding(6, 5, factor=factor)
    expand, norm = expanding
    norm.weight.normal_()
    maps = torch.randn(2, 6, 3, 4)
    linear = expand.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (row, column, C') of the square, from C
    found = F.linear(maps.permute(0, 2, 3, 1), linear).unflatten(-1, (factor, factor, 5))
    found = found.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
    expected = F.layer_norm(found, (5,), norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)
    torch.testing.assert_close(expanding(maps), expected, rtol=1e-5, atol=1e-5)
