"""Boxes against torchvision and the definitions."""

import pytest
import torch
from torchvision.ops import box_iou

from cellvision.ops import boxes as module
from cellvision.ops.boxes import compute_areas, compute_centres, compute_ious, locate, match_boxes, to_boxes, to_ltrb


def draw_boxes(count, seed=0, span=50.0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * span - span / 4
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * span / 2 + 0.1], dim=1)


def test_overlaps_are_those_of_torchvision():
    first, second = draw_boxes(40, 0), draw_boxes(30, 1)
    torch.testing.assert_close(compute_ious(first, second), box_iou(first, second))


def test_empty_boxes_overlap_nothing():
    empty = torch.tensor([[3.0, 3, 3, 3], [3, 3, 9, 3]])
    boxes = torch.cat([empty, torch.tensor([[0.0, 0, 9, 9]])])
    assert (compute_ious(empty, boxes) == 0).all()


def test_areas_and_centres():
    boxes = torch.tensor([[1.0, 2, 4, 8], [-2, 0, 0, 1]])
    assert compute_areas(boxes).tolist() == [18, 2]
    assert compute_centres(boxes).tolist() == [[2.5, 5], [-1, 0.5]]


@pytest.mark.parametrize("stride", [4, 8, 128])
def test_places_are_the_middles_of_the_cells_of_a_map(stride):
    found = locate(2, 3, stride).view(2, 3, 2)
    for row in range(2):
        for column in range(3):
            assert found[row, column].tolist() == [column * stride + stride // 2, row * stride + stride // 2]


def test_distances_and_boxes_are_inverse():
    boxes, places = draw_boxes(20), draw_boxes(20, 5)[:, :2]
    torch.testing.assert_close(to_boxes(places, to_ltrb(places, boxes)), boxes)
    assert to_ltrb(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 0, 10, 20])).tolist() == [2, 3, 8, 17]


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_best_match_is_that_of_the_whole_table(monkeypatch, at_once):
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", at_once)
    boxes, truths = draw_boxes(57, 2), draw_boxes(13, 3)
    ious, index = match_boxes(boxes, truths)
    expected = box_iou(boxes, truths).max(dim=1)
    torch.testing.assert_close(ious, expected.values)
    assert torch.equal(index, expected.indices)


def test_no_box_matches_nothing():
    ious, index = match_boxes(torch.zeros(0, 4), draw_boxes(3))
    assert ious.shape == index.shape == (0,)
