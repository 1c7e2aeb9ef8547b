"""The MaskIoU head, and its targets against whole masks."""

import numpy as np
import pytest
import torch

from cellvision.models.centermask2.roi.maskiou_head import MaskIouHead, compute_mask_ious, compute_maskiou_loss


@pytest.mark.parametrize(("side", "conv_count"), [(14, 2), (14, 1), (8, 4)])
def test_one_number_per_class(side, conv_count):
    shape = {"in_channels": 6, "width": 4, "class_count": 3, "hidden": 10}
    head = MaskIouHead(**shape, side=side, conv_count=conv_count)
    assert head(torch.randn(5, 6, side, side), torch.rand(5, 1, 2 * side, 2 * side)).shape == (5, 3)
    assert head(torch.zeros(0, 6, side, side), torch.zeros(0, 1, 2 * side, 2 * side)).shape == (0, 3)


def test_the_mask_is_looked_at_beside_the_features():
    head = MaskIouHead(in_channels=2, width=4, class_count=1, hidden=8, conv_count=1)
    features, masks = torch.randn(1, 2, 14, 14), torch.rand(1, 1, 28, 28)
    small = masks.unflatten(3, (14, 2)).unflatten(2, (14, 2)).amax((3, 5))
    with torch.no_grad():
        head.maskiou_fcn1.weight[:, 2] = 0
        blind = head(features, masks)
        head.maskiou_fcn1.weight[:, 2] = 1
        seen = head(features, masks)
        by_hand = torch.cat([features, small], dim=1)
        maps = head.maskiou_fcn1(by_hand).relu().flatten(1)
        expected = head.maskiou(head.maskiou_fc2(head.maskiou_fc1(maps).relu()).relu())
    assert not torch.equal(blind, seen)
    torch.testing.assert_close(seen, expected)


def test_overlap_counts_what_lies_outside_the_box():
    """A cell of 20 x 20 px of which a box of 16 x 20 px holds four fifths, drawn on a grid of the box's own pixels."""
    truth = np.zeros((40, 40), bool)
    truth[10:30, 10:30] = True
    drawn = np.zeros((40, 40), bool)
    drawn[12:28, 14:25] = True
    box = np.s_[10:30, 14:30]
    side_mask = torch.from_numpy(truth[box]).unsqueeze(0)
    logits = torch.from_numpy(np.where(drawn[box], 1.0, -1.0)).unsqueeze(0)
    share = torch.tensor([float(truth[box].sum() / truth.sum())])
    expected = (truth & drawn).sum() / (truth | drawn).sum()
    assert compute_mask_ious(logits, side_mask, share).item() == pytest.approx(expected)


def test_overlap_of_nothing_is_0():
    ious = compute_mask_ious(
        torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1).expand(3, 4, 4),
        torch.tensor([False, False, True]).view(3, 1, 1).expand(3, 4, 4),
        torch.zeros(3),
    )
    assert ious[:2].tolist() == [0, 0]
    assert ious.dtype == torch.float32
    assert 0 <= ious[2] < 1e-6  # a mask in the box but no share of the cell there: the whole is taken as endless


def test_loss_is_half_the_mean_square_over_regions_with_overlap():
    found = torch.tensor([0.5, 1.0, 0.2], requires_grad=True)
    loss = compute_maskiou_loss(found, torch.tensor([0.7, 0.0, 0.1]))
    assert loss.item() == pytest.approx(0.5 * (0.2**2 + 0.1**2) / 2)
    loss.backward()
    assert found.grad[1] == 0


@pytest.mark.parametrize("count", [0, 3])
def test_without_overlap_the_loss_is_0_with_a_gradient(count):
    found = torch.ones(count, requires_grad=True)
    loss = compute_maskiou_loss(found, torch.zeros(count))
    loss.backward()
    assert loss.item() == 0
    assert (found.grad == 0).all()
