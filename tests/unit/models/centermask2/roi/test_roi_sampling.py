"""Which boxes the masks are learned from."""

import pytest
import torch
from torchvision.ops import box_iou

from cellvision.models.centermask2.ground_truth.cells import GroundTruth
from cellvision.models.centermask2.options import RoiSampling
from cellvision.models.centermask2.roi.sampling import sample_regions


def make_truth(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + 5 + torch.rand(count, 2, generator=generator) * 20], dim=1)
    return GroundTruth(boxes=boxes, classes=torch.arange(count) % 3, masks=None)


def shake(truth, times=10):
    generator = torch.Generator().manual_seed(1)
    boxes = truth.boxes.repeat(times, 1)
    return boxes + torch.randn(boxes.shape, generator=generator) * 2


def test_boxes_that_overlap_a_cell_enough_take_its_class():
    truth = make_truth(8)
    boxes = shake(truth)
    ious, cells = box_iou(boxes, truth.boxes).max(1)
    regions = sample_regions(boxes, truth, RoiSampling(append_truth=False))
    assert 10 < len(regions.boxes) < 80
    assert torch.equal(regions.boxes, boxes[ious >= 0.5])
    assert torch.equal(regions.cells, cells[ious >= 0.5])
    assert torch.equal(regions.classes, truth.classes[regions.cells])


@pytest.mark.parametrize("proposed", [0, 5])
def test_true_boxes_take_part(proposed):
    truth = make_truth(4)
    regions = sample_regions(torch.zeros(proposed, 4), truth, RoiSampling())
    assert torch.equal(regions.boxes, truth.boxes)
    assert regions.cells.tolist() == [0, 1, 2, 3]
    assert len(sample_regions(torch.zeros(proposed, 4), truth, RoiSampling(append_truth=False)).boxes) == 0


def test_too_many_are_drawn_at_random_and_again_with_the_same_seed():
    truth = make_truth(20)
    boxes, options = shake(truth), RoiSampling(per_image=32)
    everything = {tuple(box) for box in sample_regions(boxes, truth, RoiSampling(per_image=4000)).boxes.tolist()}
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample_regions(boxes, truth, options))
    assert [len(each.boxes) for each in draws] == [8, 8, 8]
    assert torch.equal(draws[0].boxes, draws[1].boxes)
    assert not torch.equal(draws[0].boxes, draws[2].boxes)
    assert {tuple(box) for box in draws[2].boxes.tolist()} < everything
    ious = box_iou(draws[2].boxes, truth.boxes)
    assert torch.equal(ious.argmax(1), draws[2].cells)


def test_an_image_without_cells_gives_no_regions():
    regions = sample_regions(torch.rand(7, 4), make_truth(0), RoiSampling())
    assert regions.boxes.shape == (0, 4)
    assert regions.cells.shape == regions.classes.shape == (0,)
    assert regions.cells.dtype == torch.int64
