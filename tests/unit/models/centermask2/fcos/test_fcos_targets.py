"""Sparse assignment against the table of all places by all boxes."""

import numpy as np
import pytest
import torch

from cellvision.models.centermask2 import pairs
from cellvision.models.centermask2.fcos.targets import assign_targets
from cellvision.models.centermask2.ground_truth.cells import GroundTruth
from cellvision.models.centermask2.options import FcosAssigning

OFFICIAL = [8, 16, 32, 64, 128]


def list_shapes(height, width, strides):
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def make_truth(boxes, classes=None, ignored=None):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.arange(len(boxes)) % 3 if classes is None else torch.as_tensor(classes)
    return GroundTruth(boxes=boxes, classes=classes, masks=None, ignored=ignored)


def draw_truth(seed, *, count=60, height=256, width=320, longest=200):
    """Boxes of all sizes on a grid of eighths of a pixel, some equal in area, some beyond the border, some tiny."""
    generator = np.random.default_rng(seed)
    centres = generator.uniform(0, 1, (count, 2)) * (width, height)
    sides = longest ** generator.uniform(0, 1, (count, 2))
    boxes = np.round(np.concatenate([centres - sides / 2, centres + sides / 2], axis=1) * 8) / 8
    boxes[: count // 10] = boxes[count // 10 : 2 * (count // 10)]  # twins
    boxes[-5:, 2:] = boxes[-5:, :2] + 1
    return make_truth(boxes, generator.integers(0, 3, count))


def assign_densely(truths, strides, shapes, options):
    """The rule as it is written in the paper's code: every place with every box."""
    found, start = [], 0
    for stride, (height, width), (shortest, longest) in zip(strides, shapes, options.ranges, strict=True):
        for truth in truths:
            for place in range(height * width):
                x, y = place % width * stride + stride // 2, place // width * stride + stride // 2
                best = find_best(truth.boxes.double().numpy(), x, y, stride, shortest, longest, options)
                if best is not None:
                    x0, y0, x1, y1 = truth.boxes[best].tolist()
                    ltrb = np.array([x - x0, y - y0, x1 - x, y1 - y]) / stride
                    found.append((start + place, int(truth.classes[best]), ltrb))
            start += height * width
    return found


def find_best(boxes, x, y, stride, shortest, longest, options):
    if not len(boxes):
        return None
    x0, y0, x1, y1 = boxes.T
    sides = np.stack([x - x0, y - y0, x1 - x, y1 - y])
    is_inside = sides.min(0) > 0
    if options.centre_sampling:
        reach = options.radius * stride
        is_inside &= (np.abs(x - (x0 + x1) / 2) < reach) & (np.abs(y - (y0 + y1) / 2) < reach)
    fits = is_inside & (sides.max(0) >= shortest) & (sides.max(0) <= longest)
    areas = np.where(fits, (x1 - x0) * (y1 - y0), np.inf)
    return int(areas.argmin()) if fits.any() else None


def assert_same(targets, expected):
    assert targets.positive.tolist() == [place for place, _, _ in expected]
    assert targets.classes.tolist() == [name for _, name, _ in expected]
    ltrb = np.array([ltrb for _, _, ltrb in expected]).reshape(-1, 4)
    np.testing.assert_allclose(targets.ltrb, ltrb, rtol=1e-6)
    assert (targets.ltrb > 0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("centre_sampling", [True, False])
@pytest.mark.parametrize(
    ("strides", "sizes", "radius"),
    [(OFFICIAL, (64, 128, 256, 512), 1.5), ([4, 8, 16, 32], (24, 48, 96), 0.7), ([16], (), 2.5)],
)
def test_places_are_those_of_the_dense_rule(seed, centre_sampling, strides, sizes, radius):
    truths = [draw_truth(seed), make_truth([]), draw_truth(seed + 10, count=20)]
    options = FcosAssigning(sizes_of_interest=sizes, centre_sampling=centre_sampling, radius=radius)
    shapes = list_shapes(256, 320, strides)
    targets = assign_targets(truths, strides=strides, shapes=shapes, options=options)
    expected = assign_densely(truths, strides, shapes, options)
    assert len(expected) > 20
    assert_same(targets, expected)
    assert len(targets.ignored) == 3 * sum(height * width for height, width in shapes)
    assert not targets.ignored.any()


def test_chunks_change_nothing(monkeypatch):
    truths, shapes = [draw_truth(0)], list_shapes(256, 320, OFFICIAL)
    options = FcosAssigning(centre_sampling=False)
    whole = assign_targets(truths, strides=OFFICIAL, shapes=shapes, options=options)
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 50)
    parts = assign_targets(truths, strides=OFFICIAL, shapes=shapes, options=options)
    assert torch.equal(parts.positive, whole.positive)
    assert torch.equal(parts.ltrb, whole.ltrb)


def test_a_cell_narrower_than_the_grid_is_learned_where_a_place_lies_in_it():
    """Places of stride 8 are at 4, 12, ...: a column of 1 px from 4 on has its side there and no place inside."""
    options = FcosAssigning(sizes_of_interest=())
    for x0, count in ((3.5, 1), (4.0, 0), (7.0, 0)):
        truth = make_truth([[x0, 0, x0 + 1, 20]])
        targets = assign_targets([truth], strides=[8], shapes=[(4, 4)], options=options)
        assert len(targets.positive) == 2 * count


def test_a_cell_cut_by_the_border_is_learned_with_its_box_as_it_is():
    truth = make_truth([[-3, 50, 6, 64], [60, 60, 70, 70]])
    targets = assign_targets([truth], strides=[8], shapes=[(8, 8)], options=FcosAssigning(sizes_of_interest=()))
    assert targets.positive.tolist() == [48, 56]  # rows at 52 and 60, column at 4; (60, 60) is the other's corner


def test_no_cells_leave_all_places_to_the_background():
    targets = assign_targets(
        [make_truth([])], strides=[8], shapes=[(3, 4)], options=FcosAssigning(sizes_of_interest=())
    )
    assert targets.positive.shape == (0,)
    assert targets.ltrb.shape == (0, 4)
    assert targets.ignored.tolist() == [False] * 12


def test_over_the_cap_the_places_nearest_to_their_centres_stay_and_the_others_count_for_nothing():
    truth, shapes = draw_truth(1), list_shapes(256, 320, OFFICIAL)
    everything = assign_targets([truth, truth], strides=OFFICIAL, shapes=shapes, options=FcosAssigning())
    capped = assign_targets([truth, truth], strides=OFFICIAL, shapes=shapes, options=FcosAssigning(max_positives=30))
    assert len(capped.positive) == 60
    kept = torch.isin(everything.positive, capped.positive)
    assert set(capped.positive.tolist()) | set(capped.ignored.nonzero().flatten().tolist()) == set(
        everything.positive.tolist()
    )
    offsets = ((everything.ltrb[:, 2:] - everything.ltrb[:, :2]) / 2).square().sum(1)  # in strides
    assert offsets[kept].max() <= offsets[~kept].min()


def test_ignored_pixels_are_no_background_but_cells_there_are_still_learned():
    ignored = torch.zeros(30, 40, dtype=torch.bool)
    ignored[:, 10:30] = True
    truth = make_truth([[14, 6, 26, 18]], ignored=ignored)
    shapes = list_shapes(64, 64, [8, 16])
    targets = assign_targets(
        [truth, make_truth([])], strides=[8, 16], shapes=shapes, options=FcosAssigning(sizes_of_interest=(64,))
    )
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, 1:4] = True  # rows at 4, 12, 20, 28 of 30; columns at 12, 20, 28
    fine, fine_other, coarse, coarse_other = targets.ignored.split([64, 64, 16, 16])
    expected[1, 2] = False  # (20, 12) lies in the cell
    assert targets.positive.tolist() == [10]
    assert torch.equal(fine.view(8, 8), expected)
    assert coarse.view(4, 4).nonzero().tolist() == [[0, 1], [1, 1]]  # (24, 8) and (24, 24)
    assert not fine_other.any()
    assert not coarse_other.any()
