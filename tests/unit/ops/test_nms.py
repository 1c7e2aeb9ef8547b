"""Suppression against torchvision's, and against the loop of the paper for the soft form."""

import math

import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from cellvision.ops.nms import part_classes, suppress, suppress_softly


def draw(count, seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 60 - 20
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 30 + 1], dim=1)
    scores = (torch.randperm(count, generator=generator) + 1) / (count + 1)  # no two alike
    return boxes, scores, torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 40, 1500])  # torchvision takes another way from 1000 boxes on
def test_suppression_is_that_of_torchvision(seed, count):
    boxes, scores, classes = draw(count, seed)
    for iou in (0.3, 0.6):
        assert torch.equal(suppress(boxes, scores, classes, iou=iou), batched_nms(boxes, scores, classes, iou))


def test_classes_are_parted_and_none_is_bent():
    boxes, _, classes = draw(60, 0)
    parted = part_classes(boxes, classes)
    same = classes.unsqueeze(0) == classes.unsqueeze(1)
    torch.testing.assert_close(box_iou(parted, parted), box_iou(boxes, boxes) * same, atol=1e-5, rtol=1e-5)


def test_nothing_is_suppressed_of_nothing():
    nothing = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert suppress(*nothing, iou=0.5).tolist() == []
    kept, scores = suppress_softly(*nothing, sigma=0.5, limit=10)
    assert kept.tolist() == scores.tolist() == []
    assert kept.dtype == torch.int64


def fade_naively(boxes, scores, classes, sigma, limit):
    ious = box_iou(boxes, boxes)
    scores, left, picked = scores.tolist(), set(range(len(boxes))), []
    while left and len(picked) < limit:
        best = max(left, key=scores.__getitem__)
        picked.append((best, scores[best]))
        left.remove(best)
        for other in left:
            if classes[other] == classes[best]:
                scores[other] *= math.exp(-(ious[best, other].item() ** 2) / sigma)
    return picked


@pytest.mark.parametrize("sigma", [0.1, 0.5])
@pytest.mark.parametrize("limit", [5, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_soft_suppression_is_that_of_the_paper(sigma, limit, seed):
    boxes, scores, classes = draw(80, seed)
    kept, faded = suppress_softly(boxes, scores, classes, sigma=sigma, limit=limit)
    expected = fade_naively(boxes, scores, classes, sigma, limit)
    assert kept.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(faded, torch.tensor([score for _, score in expected]), rtol=1e-4, atol=1e-6)


def test_soft_suppression_leaves_its_input_as_it_is():
    boxes, scores, classes = draw(10, 0)
    before = scores.clone()
    suppress_softly(boxes, scores, classes, sigma=0.5, limit=10)
    assert torch.equal(scores, before)
