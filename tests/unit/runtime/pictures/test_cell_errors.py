import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvision.errors import ConfigError, ShapeError
from cellvision.runtime.pictures.cell_errors import classify_errors


def lines(pred, true, **options):
    """Kinds of one row of pixels each, labels as digits."""
    return classify_errors(*(np.array([[int(pixel) for pixel in row]]) for row in (pred, true)), **options)


def counts(**given):
    return {"found": 0, "missed": 0, "false": 0, "merged": 0, "split": 0, "inexact": 0} | given


def test_equal_images_are_all_found():
    errors = lines("1100220333", "5500770999")
    assert errors.counts == counts(found=3)
    assert errors.found.tolist() == [[1, 5], [2, 7], [3, 9]]


def test_missed_and_false():
    errors = lines("0000011100", "1110000022")
    assert errors.counts == counts(missed=2, false=1)
    assert errors.missed.tolist() == [1, 2]
    assert errors.false.tolist() == [1]


@pytest.mark.parametrize(("kind", "left"), [("merged", "missed"), ("split", "false")])
def test_two_in_one_need_to_be_mostly_inside(kind, left):
    """Two true cells in one prediction are merged; two predictions in one true cell, the same the other way round, are
    pieces that it was split into."""

    def compare(one, two):
        return lines(one, two) if kind == "merged" else lines(two, one)

    errors = compare("1111110000", "2222333000")
    assert errors.counts == counts(**{kind: 1})
    assert {key: list(value) for key, value in getattr(errors, kind).items()} == {1: [2, 3]}
    half = compare("1111110000", "2222333300")  # half of 3 is not most of it
    assert half.counts == counts(found=1, **{left: 1})


def test_three_cells_in_one():
    errors = lines("4444444440", "1112223330")
    assert {key: list(value) for key, value in errors.merged.items()} == {4: [1, 2, 3]}
    assert errors.counts == counts(merged=1)


def test_a_split_cell_is_split_though_a_piece_would_do():
    assert lines("1111122000", "7777777000").counts == counts(split=1)


def test_a_speck_is_false_and_splits_nothing():
    true = np.ones((5, 20), int)
    pred = true.copy()
    pred[0, :9] = 2
    assert classify_errors(pred, true).counts == counts(found=1, false=1)
    pred[0, :10] = 2
    assert classify_errors(pred, true).counts == counts(split=1)


def test_between_found_and_missed_lies_inexact():
    errors = lines("1100000000", "3333330000")
    assert errors.counts == counts(inexact=1)
    assert errors.inexact.tolist() == [[1, 3]]
    assert lines("1100000000", "3333330000", touch=0.4).counts == counts(missed=1, false=1)
    assert lines("1111000000", "3333330000", iou=0.7).counts == counts(inexact=1)
    assert lines("1110000000", "3333330000").counts == counts(found=1)  # exactly the threshold


def test_the_best_prediction_is_the_inexact_one():
    true = np.zeros((1, 40), int)
    true[0, 10:20] = 1
    pred = np.zeros((1, 40), int)
    pred[0, 4:12] = 1
    pred[0, 16:30] = 2
    errors = classify_errors(pred, true)
    assert errors.inexact.tolist() == [[2, 1]]
    assert errors.false.tolist() == [1]


def test_ignored_pixels_take_cells_with_them():
    ignore = np.zeros((1, 10), bool)
    ignore[0, 4:] = True
    assert lines("1100220330", "1100220300", ignore=ignore).counts == counts(found=1)
    ignore[0, 4] = ignore[0, 5] = False
    assert lines("1100220330", "1100220300", ignore=ignore).counts == counts(found=2)


def test_empty_images():
    assert lines("0000", "0000").counts == counts()
    assert classify_errors(np.zeros((0, 0), int), np.zeros((0, 0), int)).counts == counts()
    assert lines("0110", "0000").counts == counts(false=1)
    assert lines("0000", "0110").counts == counts(missed=1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), cells=st.integers(1, 12))
def test_every_cell_has_one_kind(seed, cells):
    rng = np.random.default_rng(seed)
    pred, true = (np.kron(rng.integers(0, cells, (6, 7)), np.ones((3, 2), int)) for _ in range(2))
    pred[rng.random(pred.shape) < 0.1] = 0
    errors = classify_errors(pred, true)
    of_true = [*errors.missed, *errors.split, *errors.found[:, 1], *errors.inexact[:, 1]]
    of_true += [cell for group in errors.merged.values() for cell in group]
    assert sorted(of_true) == sorted(set(np.unique(true)) - {0})
    of_pred = [*errors.false, *errors.merged, *errors.found[:, 0], *np.unique(errors.inexact[:, 0])]
    of_pred += [cell for group in errors.split.values() for cell in group]
    assert sorted(of_pred) == sorted(set(np.unique(pred)) - {0})


def test_labels_may_be_huge():
    errors = classify_errors(np.array([[2**30, 0]]), np.array([[2**31 - 1, 0]]))
    assert errors.found.tolist() == [[2**30, 2**31 - 1]]


def test_images_of_two_fields_are_refused():
    with pytest.raises(
        ShapeError, match=r"predicted labels of \(2, 3\) px and true ones of \(3, 2\); need images of one"
    ):
        classify_errors(np.zeros((2, 3), int), np.zeros((3, 2), int))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"iou": 0.4}, r"iou=0.4; need 0.5 to 1"), ({"touch": 0.6}, r"touch=0.6; need above 0, at most iou=0.5")],
)
def test_thresholds_that_allow_two_answers_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        lines("1", "1", **options)
