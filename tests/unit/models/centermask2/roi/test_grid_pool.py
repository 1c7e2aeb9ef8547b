"""Pooling by look-up against torchvision's ROIAlign, through RoiPool."""

import pytest
import torch

from cellvision.models.centermask2.roi.grid_pool import GridPool
from cellvision.models.centermask2.roi.pool import RoiPool

STRIDES = {2: 4, 3: 8}


def make_case(*, largest, batch=2, seed=0, criterion="ratio"):
    """Maps of a 160 x 224 px image, and boxes of 3 to ``largest`` px, some beyond its border."""
    generator = torch.Generator().manual_seed(seed)
    pyramid = {level: torch.randn(batch, 5, 160 // s, 224 // s, generator=generator) for level, s in STRIDES.items()}
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([250.0, 180.0]) - 15
    size = torch.rand(40, 2, generator=generator) * (largest - 3) + 3
    boxes = torch.cat([corner, corner + size], 1)
    images = torch.randint(0, batch, (40,), generator=generator)
    pool = RoiPool(strides=STRIDES, criterion=criterion, side=14)
    return pool, (pyramid, boxes, images, torch.full((40,), 160.0 * 224))


@pytest.mark.parametrize("criterion", ["ratio", "area"])
@pytest.mark.parametrize("batch", [1, 3])
def test_equal_to_roi_align_up_to_two_samples_a_bin(criterion, batch):
    pool, case = make_case(largest=110, batch=batch, criterion=criterion)
    torch.testing.assert_close(GridPool(pool)(*case), pool(*case), atol=2e-5, rtol=1e-4)


def test_close_to_roi_align_beyond():
    """White noise is the worst that can be sampled further apart: maps of real nets are smooth."""
    pool, case = make_case(largest=220)
    found, wanted = GridPool(pool)(*case), pool(*case)
    assert (found - wanted).abs().max() > 1e-3
    assert (found - wanted).abs().mean() < 0.05


def test_a_box_without_extent_holds_nothing():
    pool, (pyramid, boxes, images, areas) = make_case(largest=50)
    flat = torch.stack([boxes[:, 0], boxes[:, 1], boxes[:, 0], boxes[:, 3]], 1)
    found = GridPool(pool)(pyramid, flat, images, areas)
    assert not found.any()
    torch.testing.assert_close(found, pool(pyramid, flat, images, areas))


def test_no_region_gives_none():
    pool, (pyramid, boxes, images, areas) = make_case(largest=50)
    assert GridPool(pool)(pyramid, boxes[:0], images[:0], areas[:0]).shape == (0, 5, 14, 14)


def test_images_of_a_batch_do_not_touch():
    """A box beyond the lower border of one image sees nothing of the next one below it."""
    pool, (pyramid, *_) = make_case(largest=50)
    bright = {
        level: torch.stack([torch.zeros_like(maps[0]), torch.full_like(maps[0], 9.0)])
        for level, maps in pyramid.items()
    }
    boxes = torch.tensor([[20.0, 140.0, 60.0, 190.0], [20.0, -20.0, 60.0, 20.0]])
    images, areas = torch.tensor([0, 1]), torch.full((2,), 160.0 * 224)
    found = GridPool(pool)(bright, boxes, images, areas)
    assert not found[0].any()
    torch.testing.assert_close(found, pool(bright, boxes, images, areas))
