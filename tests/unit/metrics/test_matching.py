from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from cellvision.errors import ConfigError, DataError, ShapeError
from cellvision.metrics.matching import match_cells

SMALL = arrays(np.int32, (4, 5), elements=st.integers(0, 4))


def compute_iou_table(pred, truth):
    """IoU of every pair, from masks, pixel by pixel: the slow and obvious way."""
    preds, truths = np.unique(pred[pred > 0]), np.unique(truth[truth > 0])
    table = np.zeros((preds.size, truths.size))
    for i, p in enumerate(preds):
        for j, t in enumerate(truths):
            table[i, j] = np.sum((pred == p) & (truth == t)) / np.sum((pred == p) | (truth == t))
    return preds, truths, table


def find_best_by_trying_all(table, iou):
    """(number of pairs, total IoU) of the best one-to-one pairing."""
    if table.size == 0:
        return 0, 0.0
    table = table if table.shape[0] <= table.shape[1] else table.T
    best = (0, 0.0)
    for order in permutations(range(table.shape[1]), table.shape[0]):
        pairs = [table[i, j] for i, j in enumerate(order) if table[i, j] >= iou]
        best = max(best, (len(pairs), round(sum(pairs), 9)))
    return best


@settings(max_examples=150, deadline=None)
@given(pred=SMALL, truth=SMALL, iou=st.sampled_from([0.01, 0.1, 0.2, 0.34, 0.5, 0.7, 1.0]))
def test_pairs_are_the_best_possible(pred, truth, iou):
    preds, truths, table = compute_iou_table(pred, truth)
    found = match_cells(pred, truth, iou=iou)
    count, total = find_best_by_trying_all(table, iou)
    assert found.iou.size == count
    assert found.iou.sum() == pytest.approx(total)
    rows, columns = np.searchsorted(preds, found.pred_ids), np.searchsorted(truths, found.true_ids)
    np.testing.assert_allclose(found.iou, table[rows, columns])
    assert sorted([*found.pred_ids, *found.extra_ids]) == preds.tolist()
    assert sorted([*found.true_ids, *found.missed_ids]) == truths.tolist()


def draw_squares(rng, cells, edge=12):
    """A label image of squares on a grid, each moved a little, so that neighbours overlap at low IoU."""
    side = int(np.ceil(np.sqrt(cells)))
    image = np.zeros((side * edge, side * edge), np.int32)
    for label in range(1, cells + 1):
        row, column = divmod(label - 1, side)
        top, left = (np.array([row, column]) * edge + rng.integers(-4, 5, 2)).clip(0)
        image[top : top + edge - 2, left : left + edge - 2] = label
    return image


@pytest.mark.parametrize("iou", [0.1, 0.3, 0.5])
def test_many_small_assignments_equal_the_one_large(iou):
    rng = np.random.default_rng(3)
    pred, truth = draw_squares(rng, 60), draw_squares(rng, 60)
    _, _, table = compute_iou_table(pred, truth)
    weight = np.where(table >= iou, 1000.0 + table, 0.0)
    rows, columns = linear_sum_assignment(weight, maximize=True)
    oracle = table[rows, columns][weight[rows, columns] > 0]
    found = match_cells(pred, truth, iou=iou)
    assert found.iou.size == oracle.size
    assert found.iou.sum() == pytest.approx(oracle.sum())


def test_thousands_of_cells_need_no_table_of_all_pairs():
    rng = np.random.default_rng(0)
    pred, truth = draw_squares(rng, 3000), draw_squares(rng, 3000)
    found = match_cells(pred, truth, iou=0.2)
    assert found.iou.size > 2000
    assert np.unique(found.pred_ids).size == np.unique(found.true_ids).size == found.iou.size


def test_two_halves_of_one_prediction_at_exactly_one_half():
    found = match_cells(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 2, 2]]))
    assert found.pred_ids.tolist() == [1]
    assert found.iou.tolist() == [0.5]
    assert found.missed_ids.size == 1


def test_more_pairs_beat_one_better_pair():
    # Prediction 1 overlaps both cells, prediction 2 only cell 1: greedy would take (1, 1) and lose prediction 2.
    pred = np.array([[1, 1, 1, 1, 2, 2]])
    truth = np.array([[2, 1, 1, 1, 1, 1]])
    found = match_cells(pred, truth, iou=0.2)
    assert dict(zip(found.pred_ids.tolist(), found.true_ids.tolist(), strict=True)) == {1: 2, 2: 1}


def test_huge_labels_and_gaps_are_fine():
    top = np.iinfo(np.int32).max
    found = match_cells(np.array([[top, 0]], np.int32), np.array([[top - 1, 7]], np.int32))
    assert (found.pred_ids.tolist(), found.true_ids.tolist(), found.missed_ids.tolist()) == ([top], [top - 1], [7])


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (3, 4)])
def test_no_cells(shape):
    found = match_cells(np.zeros(shape, np.int32), np.zeros(shape, np.int32))
    assert found.pred_ids.size == found.extra_ids.size == found.missed_ids.size == 0


def test_ignored_pixels_excuse_both_sides_but_not_a_matched_cell():
    truth = np.array([[1, 1, 0, 2, 2, 0, 0, 0]])
    pred = np.array([[1, 1, 0, 2, 2, 0, 3, 4]])
    ignore = np.array([[0, 1, 0, 1, 1, 0, 1, 0]], bool)
    found = match_cells(pred, truth, ignore=ignore)
    assert found.left_out_true_ids.tolist() == [1, 2]
    assert found.left_out_pred_ids.tolist() == [1, 2, 3]
    assert (found.pred_ids.size, found.extra_ids.tolist(), found.missed_ids.tolist()) == (0, [4], [])
    kept = match_cells(pred, truth, ignore=np.array([[0, 0, 0, 0, 0, 0, 1, 0]], bool))
    assert (kept.pred_ids.tolist(), kept.extra_ids.tolist()) == ([1, 2], [4])


def test_cell_that_covers_an_ignored_one_at_one_half_is_excused():
    found = match_cells(np.array([[1, 1, 1, 1]]), np.array([[5, 5, 0, 0]]), ignore=np.array([[1, 1, 0, 0]], bool))
    assert (found.left_out_pred_ids.tolist(), found.extra_ids.size, found.missed_ids.size) == ([1], 0, 0)


def test_a_worse_neighbour_of_an_ignored_cell_is_still_an_error():
    found = match_cells(np.array([[1, 1, 1, 1, 1]]), np.array([[5, 5, 0, 0, 0]]), ignore=np.array([[1, 1, 0, 0, 0]]))
    assert found.extra_ids.tolist() == [1]


@pytest.mark.parametrize("iou", [0.0, -0.5, 1.01, float("nan")])
def test_iou_outside_its_range_is_refused(iou):
    with pytest.raises(ConfigError, match="iou="):
        match_cells(np.zeros((2, 2), int), np.zeros((2, 2), int), iou=iou)


def test_different_sizes_are_refused():
    with pytest.raises(ShapeError, match=r"\(2, 2\), \(2, 3\); need one"):
        match_cells(np.zeros((2, 2), int), np.zeros((2, 3), int))


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.full((2, 2), -1)])
def test_fractions_and_negative_labels_are_refused(bad):
    with pytest.raises(DataError, match="predicted label image is"):
        match_cells(bad, np.zeros((2, 2), int))
