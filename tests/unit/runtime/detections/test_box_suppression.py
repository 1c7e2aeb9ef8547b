import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, nms

from cellvision.runtime.detections.nms import suppress_boxes


def draw_boxes(seed, count, *, spread=60.0, largest=25.0):
    """Boxes on a grid of quarters of px, so that many have the same overlap, in the order of falling scores."""
    rng = np.random.default_rng(seed)
    corner = np.round(rng.uniform(0, spread, (count, 2)) * 4) / 4
    size = np.round(rng.uniform(0, largest, (count, 2)) * 4) / 4
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def list_torchvision(boxes, iou):
    scores = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    return nms(torch.from_numpy(boxes), scores, iou).numpy()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 700), iou=st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.9]))
def test_keeps_what_torchvision_keeps(seed, count, iou):
    boxes = draw_boxes(seed, count)
    kept = suppress_boxes(boxes, np.ones(count, np.int64), iou=iou)
    assert kept.dtype == np.int64
    np.testing.assert_array_equal(kept, list_torchvision(boxes, iou))


def test_keeps_what_torchvision_keeps_of_real_numbers():
    rng = np.random.default_rng(1)
    corner = rng.uniform(-20, 500, (4000, 2))
    boxes = np.concatenate([corner, corner + rng.lognormal(2.5, 0.5, (4000, 2))], axis=1).astype(np.float32)
    np.testing.assert_array_equal(suppress_boxes(boxes, np.ones(4000, int), iou=0.6), list_torchvision(boxes, 0.6))


@pytest.mark.parametrize("seed", range(3))
def test_classes_do_not_suppress_each_other(seed):
    boxes = draw_boxes(seed, 600)
    classes = np.random.default_rng(seed).integers(1, 4, 600)
    scores = torch.arange(600, 0, -1, dtype=torch.float32)
    expected = batched_nms(torch.from_numpy(boxes), scores, torch.from_numpy(classes), 0.4).sort().values.numpy()
    np.testing.assert_array_equal(suppress_boxes(boxes, classes, iou=0.4), expected)


@pytest.mark.parametrize("limit", [0, 1, 255, 256, 300, 10**6])
def test_stops_at_the_limit(limit):
    boxes = draw_boxes(5, 900, spread=500)
    every = suppress_boxes(boxes, np.ones(900, int), iou=0.5)
    assert len(every) > 300
    np.testing.assert_array_equal(suppress_boxes(boxes, np.ones(900, int), iou=0.5, limit=limit), every[:limit])


def test_overlap_of_exactly_the_threshold_stays():
    boxes = np.array([[0, 0, 4, 4], [0, 2, 4, 4], [0, 0, 4, 4]], np.float32)
    assert suppress_boxes(boxes, np.ones(3, int), iou=0.5).tolist() == [0, 1]


def test_boxes_without_an_inside_stay_and_suppress_nothing():
    boxes = np.array([[3, 3, 3, 3], [3, 3, 3, 3], [0, 0, 9, 9]], np.float32)
    assert suppress_boxes(boxes, np.ones(3, int), iou=0.5).tolist() == [0, 1, 2]


def test_boxes_of_one_group_never_suppress_each_other():
    boxes = np.repeat(np.array([[0, 0, 9, 9]], np.float32), 4, axis=0)
    group = np.array([0, 0, 1, 1])
    assert suppress_boxes(boxes, np.ones(4, int), iou=0.5, group=group).tolist() == [0, 1]


def test_thousands_take_no_square_of_memory_or_time():
    boxes = draw_boxes(7, 20000, spread=9000)
    started = time.process_time()
    kept = suppress_boxes(boxes, np.ones(20000, int), iou=0.5)
    assert len(kept) > 15000
    assert time.process_time() - started < 60
