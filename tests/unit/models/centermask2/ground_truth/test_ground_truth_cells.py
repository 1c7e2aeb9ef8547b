"""The truth of a label image against scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_detector import make_field

from cellvision.models.centermask2.ground_truth.cells import truth_from_labels
from cellvision.types import IGNORE


@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_those_of_scipy_and_labels_without_pixels_are_left_out(seed):
    _, labels = make_field(count=30, seed=seed, radius=(0.6, 20))
    labels[labels == 4] = 0
    classes = torch.arange(31) % 3 + 1  # one class more than labels in use
    truth = truth_from_labels(labels, classes)
    expected, names = [], []
    for index, slices in enumerate(ndimage.find_objects(labels.numpy())):
        if slices is not None:
            expected.append([slices[1].start, slices[0].start, slices[1].stop, slices[0].stop])
            names.append(int(classes[index]) - 1)
    assert truth.boxes.tolist() == expected
    assert truth.classes.tolist() == names
    assert truth.boxes.dtype == torch.float32
    assert truth.ignored is None


def test_masks_belong_to_the_boxes():
    _, labels = make_field(count=15, seed=1)
    truth = truth_from_labels(labels, torch.ones(15, dtype=torch.int64))
    count = len(truth.boxes)
    assert truth.masks.inside_share(truth.boxes, torch.arange(count)).tolist() == [1.0] * count
    crops = truth.masks.crop(truth.boxes, torch.arange(count), 28)
    areas = np.bincount(labels.numpy().ravel())[1:]
    sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
    found = crops.float().mean((1, 2)) * sides.prod(1)
    np.testing.assert_allclose(found, areas[areas > 0], rtol=0.15)


def test_cells_of_an_ignored_class_become_ignored_pixels():
    labels = torch.tensor([[0, 1, 1, 0], [2, 0, 3, 3]], dtype=torch.int32)
    truth = truth_from_labels(labels, torch.tensor([IGNORE, 2, IGNORE]))
    assert truth.boxes.tolist() == [[0, 1, 1, 2]]
    assert truth.classes.tolist() == [1]
    assert torch.equal(truth.ignored, (labels == 1) | (labels == 3))


@pytest.mark.parametrize("count", [0, 3])
def test_an_image_without_cells(count):
    truth = truth_from_labels(torch.zeros(5, 6, dtype=torch.int32), torch.full((count,), IGNORE))
    assert truth.boxes.shape == (0, 4)
    assert truth.classes.shape == (0,)
    assert truth.ignored is None


def test_a_cell_of_one_pixel_in_the_corner():
    labels = torch.zeros(3, 4, dtype=torch.int32)
    labels[2, 3] = 1
    assert truth_from_labels(labels, torch.tensor([1])).boxes.tolist() == [[3, 2, 4, 3]]
    labels = torch.ones(3, 4, dtype=torch.int32)
    assert truth_from_labels(labels, torch.tensor([1])).boxes.tolist() == [[0, 0, 4, 3]]
