"""The mask head's layers against torch."""

import pytest
import torch
import torch.nn.functional as F

from cellvision.models.centermask2.roi.mask_head import MaskHead, SpatialAttention, choose_class


def test_attention_weighs_every_pixel_by_mean_and_maximum_of_its_channels():
    attention = SpatialAttention()
    maps = torch.randn(3, 6, 5, 5)
    summary = torch.stack([maps.mean(1), maps.max(1).values], dim=1)
    expected = maps * F.conv2d(summary, attention.conv.weight, padding=1).sigmoid()
    torch.testing.assert_close(attention(maps), expected)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("conv_count", [0, 1, 4])
def test_masks_have_twice_the_side(attention, conv_count):
    head = MaskHead(in_channels=6, width=8, class_count=3, conv_count=conv_count, attention=attention)
    assert head(torch.randn(2, 6, 14, 14)).shape == (2, 3, 28, 28)
    assert head(torch.zeros(0, 6, 14, 14)).shape == (0, 3, 28, 28)
    names = {name.rpartition(".")[0] for name in head.state_dict()}
    convs = {f"mask_fcn{index + 1}" for index in range(conv_count)}
    assert names == {*convs, "deconv", "predictor", *(["spatialAtt.conv"] if attention else [])}


def test_an_untrained_head_is_undecided():
    masks = MaskHead(in_channels=6, width=8, class_count=2)(torch.randn(4, 6, 14, 14)).sigmoid()
    assert (masks - 0.5).abs().max() < 0.1


def test_each_region_gets_the_channel_of_its_class():
    maps = torch.randn(4, 3, 5, 6)
    classes = torch.tensor([2, 0, 1, 2])
    found = choose_class(maps, classes)
    assert torch.equal(found, torch.stack([maps[i, c : c + 1] for i, c in enumerate(classes.tolist())]))
    assert torch.equal(choose_class(maps[:, :1], classes), maps[:, :1])
    assert choose_class(maps[:0], classes[:0]).shape == (0, 1, 5, 6)
