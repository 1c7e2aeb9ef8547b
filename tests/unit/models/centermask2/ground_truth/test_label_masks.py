"""Masks from the label image against ROIAlign of whole masks (torchvision) and counts of pixels (numpy)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from cellvision.models.centermask2 import pairs
from cellvision.models.centermask2.ground_truth import label_masks
from cellvision.models.centermask2.ground_truth.label_masks import LabelMasks


def make_labels(height=60, width=80, count=9, seed=0):
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int32)
    for label in range(1, count + 1):
        y, x = generator.uniform(0, height), generator.uniform(0, width)
        a, b = generator.uniform(0.6, 30, 2)
        labels[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1] = label
    labels[0, 0] = count + 1  # a cell of one pixel
    return torch.from_numpy(labels)


def draw_boxes(count, seed, height=60, width=80, step=None):
    generator = np.random.default_rng(seed)
    centres = generator.uniform(0, 1, (count, 2)) * (width, height)
    halves = 120 ** generator.uniform(-0.2, 1, (count, 2)) / 2
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    return torch.from_numpy(np.round(boxes / step) * step if step else boxes).float()


def average(labels, ids, boxes, side):
    """(R, side, side) means that detectron2 compares with 0.5."""
    whole = torch.stack([(labels == one).float() for one in ids]).unsqueeze(1)
    regions = torch.cat([torch.arange(len(ids)).float().unsqueeze(1), boxes], dim=1)
    return roi_align(whole, regions, side, 1.0, sampling_ratio=0, aligned=True).squeeze(1)


def assert_same(found, means, at_most=0.0):
    """Equal, but where the mean is a half up to rounding."""
    clear = (means - 0.5).abs() > 1e-5
    assert torch.equal(found[clear], (means >= 0.5)[clear])
    assert (~clear).float().mean() <= at_most


@pytest.mark.parametrize("side", [28, 7])
@pytest.mark.parametrize("seed", range(4))
def test_crops_are_roi_align_of_the_whole_mask(seed, side):
    labels, boxes = make_labels(seed=seed), draw_boxes(120, seed)
    ids = labels.unique()[1:].long()
    index = torch.arange(120) % len(ids)
    found = LabelMasks(labels, ids).crop(boxes, index, side)
    means = average(labels, ids[index], boxes, side)
    assert found.any()
    assert_same(found, means, at_most=1e-3)


@pytest.mark.parametrize("step", [1, 0.25])
def test_crops_of_boxes_on_a_pixel_grid(step):
    """Where samples often lie half way between a pixel of the cell and one outside."""
    labels, boxes = make_labels(), draw_boxes(150, 5, step=step)
    ids = labels.unique()[1:].long()
    index = torch.arange(150) % len(ids)
    assert_same(LabelMasks(labels, ids).crop(boxes, index, 28), average(labels, ids[index], boxes, 28), at_most=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 110, width=16), min_size=4, max_size=4),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 9),
)
def test_crops_of_any_box_agree(numbers, side, height, width):
    x0, x1 = sorted(numbers[:2])
    y0, y1 = sorted(numbers[2:])
    labels = make_labels(height, width, count=2)
    boxes = torch.tensor([[x0, y0, x1, y1]])
    found = LabelMasks(labels, torch.tensor([3])).crop(boxes, torch.tensor([0]), side)
    assert_same(found, average(labels, torch.tensor([3]), boxes, side), at_most=1.0)


def test_a_tight_box_around_one_pixel_is_full():
    labels = torch.zeros(5, 6, dtype=torch.int32)
    labels[2, 3] = 7
    masks = LabelMasks(labels, torch.tensor([7]))
    boxes, index = torch.tensor([[3.0, 2, 4, 3], [0, 0, 1, 1], [3, 2, 3, 3]]), torch.zeros(3, dtype=torch.int64)
    crops = masks.crop(boxes, index, 28)
    assert crops[0, 14, 14]
    assert not crops[1:].any()  # another pixel; a box without width
    assert masks.inside_share(boxes, index).tolist() == [1, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_counts_of_pixel_centres(seed):
    labels, boxes = make_labels(seed=seed), draw_boxes(80, seed)
    ids = labels.unique()[1:].long()
    index = torch.arange(80) % len(ids)
    expected = []
    for box, one in zip(boxes.numpy(), ids[index].tolist(), strict=True):
        rows, columns = np.nonzero(labels.numpy() == one)
        inside = (columns + 0.5 > box[0]) & (columns + 0.5 < box[2]) & (rows + 0.5 > box[1]) & (rows + 0.5 < box[3])
        expected.append(inside.mean())
    found = LabelMasks(labels, ids).inside_share(boxes, index)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_chunks_change_nothing(monkeypatch):
    labels, boxes = make_labels(), draw_boxes(50, 1)
    ids = labels.unique()[1:].long()
    index = torch.arange(50) % len(ids)
    whole = LabelMasks(labels, ids)
    crops, shares = whole.crop(boxes, index, 14), whole.inside_share(boxes, index)
    for module in (label_masks, pairs):
        monkeypatch.setattr(module, "PAIRS_AT_ONCE", 1000)
    parts = LabelMasks(labels, ids)
    assert torch.equal(parts.crop(boxes, index, 14), crops)
    assert torch.equal(parts.inside_share(boxes, index), shares)


def test_a_field_without_cells_has_no_masks():
    masks = LabelMasks(torch.zeros(4, 5, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert masks.crop(*nothing, 28).shape == (0, 28, 28)
    assert masks.inside_share(*nothing).shape == (0,)
