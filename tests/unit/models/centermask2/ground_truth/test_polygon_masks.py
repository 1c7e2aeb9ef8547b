"""Masks from outlines against pycocotools on the full canvas, and against the label image where both must agree."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from cellvision.models.centermask2.ground_truth.label_masks import LabelMasks
from cellvision.models.centermask2.ground_truth.polygon_masks import PolygonMasks

SQUARE = np.array([10.0, 20, 30, 20, 30, 44, 10, 44])
TRIANGLE = np.array([2.0, 2, 9, 2, 2, 9])


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2
def test_a_box_that_is_the_canvas_gives_the_mask_of_pycocotools():
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([SQUARE.tolist(), TRIANGLE.tolist()], 50, 50)))
    found = PolygonMasks([[SQUARE, TRIANGLE]]).crop(torch.tensor([[0.0, 0, 50, 50]]), torch.tensor([0]), 50)
    np.testing.assert_array_equal(found[0], expected)


def test_crops_are_shifted_and_scaled_to_their_box():
    masks = PolygonMasks([[TRIANGLE], [SQUARE]])
    boxes = torch.tensor([[10.0, 20, 30, 44], [0, 20, 20, 44], [10, 20, 30, 44]])
    full, half, other = masks.crop(boxes, torch.tensor([1, 1, 0]), 28)
    assert full.all()
    assert half[:, 14:].all()
    assert not half[:, :14].any()
    assert not other.any()


def test_outlines_and_label_image_agree_on_whole_pixels():
    labels = torch.zeros(60, 60, dtype=torch.int32)
    labels[20:44, 10:30] = 1
    drawn, painted = PolygonMasks([[SQUARE]]), LabelMasks(labels, torch.tensor([1]))
    boxes = torch.tensor([[10.0, 20, 30, 44], [5, 15, 25, 30], [0, 0, 60, 60], [24, 38, 40, 50]])
    index = torch.zeros(4, dtype=torch.int64)
    differing = drawn.crop(boxes, index, 28) != painted.crop(boxes, index, 28)
    assert differing.float().mean() < 0.01
    np.testing.assert_allclose(drawn.inside_share(boxes, index), painted.inside_share(boxes, index))


def test_shares_are_drawn_pixels_by_the_area_of_all_outlines():
    masks = PolygonMasks([[SQUARE, TRIANGLE]])
    boxes = torch.tensor([[10.0, 20, 20, 44], [0, 0, 60, 60], [50, 50, 60, 60], [10, 20, 10.5, 44], [12, 12, 12, 12]])
    found = masks.inside_share(boxes, torch.zeros(5, dtype=torch.int64))
    total = 20 * 24 + 7 * 7 / 2
    assert found[0].item() == pytest.approx(240 / total)
    assert found[1].item() == pytest.approx(1, abs=0.02)  # pycocotools counts the triangle's pixels, not its area
    assert found[1] <= 1
    assert found[2:].tolist() == [0, 0, 0]


def test_no_boxes():
    masks, nothing = PolygonMasks([]), (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert masks.crop(*nothing, 28).shape == (0, 28, 28)
    assert masks.inside_share(*nothing).shape == (0,)
