"""Mask losses against torch, scipy and the formula written out."""

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from cellvision.ops.mask_losses import compute_mask_bce, compute_mask_boundary, compute_mask_dice

ALL = [compute_mask_bce, compute_mask_dice, compute_mask_boundary]


def draw(seed=0, regions=5, side=12):
    generator = torch.Generator().manual_seed(seed)
    smooth = F.avg_pool2d(torch.randn(regions, side + 6, side + 6, generator=generator), 7, stride=1)
    return torch.randn(regions, side, side, generator=generator) * 2, (smooth > 0).float()


def test_bce_is_that_of_torch():
    logits, masks = draw()
    torch.testing.assert_close(compute_mask_bce(logits, masks), F.binary_cross_entropy_with_logits(logits, masks))


def test_dice_is_a_mean_over_cells():
    logits, masks = draw()
    expected = []
    for found, truth in zip(logits.sigmoid(), masks, strict=True):
        expected.append(1 - (2 * (found * truth).sum() + 1) / (found.sum() + truth.sum() + 1))
    torch.testing.assert_close(compute_mask_dice(logits, masks), torch.stack(expected).mean())


def test_boundary_is_the_bce_along_the_contours():
    logits, masks = draw()
    pixels = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    square = torch.ones(3, 3).numpy()
    counted = []
    for losses, mask in zip(pixels, masks.bool().numpy(), strict=True):
        eroded = ndimage.binary_erosion(mask, square, border_value=1)
        counted.append(losses[torch.from_numpy(ndimage.binary_dilation(mask, square) & ~eroded)])
    torch.testing.assert_close(compute_mask_boundary(logits, masks), torch.cat(counted).mean())


def test_a_mask_that_fills_its_box_has_no_contour():
    assert compute_mask_boundary(torch.zeros(2, 6, 6), torch.ones(2, 6, 6)).item() == 0


@pytest.mark.parametrize("compute", ALL)
def test_without_cells_there_is_a_loss_of_0_with_a_gradient(compute):
    logits = torch.zeros(0, 28, 28, requires_grad=True)
    loss = compute(logits, torch.zeros(0, 28, 28))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


@pytest.mark.parametrize("compute", ALL)
def test_a_better_mask_costs_less(compute):
    logits, masks = draw()
    better = logits + (2 * masks - 1)
    assert compute(better, masks) < compute(logits, masks)
