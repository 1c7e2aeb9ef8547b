import numpy as np
import pytest

from cellvision.errors import ConfigError, ShapeError
from cellvision.runtime.detections.found import Detections, read_detections


def make(boxes, scores=None, *, mask_scores=None, classes=2, side=4):
    count = len(boxes)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(count, 4),
        scores=np.linspace(0.9, 0.1, count, dtype=np.float32) if scores is None else np.array(scores, np.float32),
        mask_scores=None if mask_scores is None else np.array(mask_scores, np.float32),
        class_id=np.arange(count) % classes + 1,
        class_scores=np.full((count, classes), 0.5, np.float32),
        masks=np.full((count, side, side), np.arange(count, dtype=np.float32)[:, None, None]),
    )


def test_mask_scores_rank_where_there_are_any_and_stay_in_0_1():
    boxes = [[0, 0, 2, 2]] * 3
    assert make(boxes, [0.5, 0.6, 0.7]).rank_scores.tolist() == pytest.approx([0.5, 0.6, 0.7])
    ranked = make(boxes, [0.5, 0.6, 0.7], mask_scores=[-0.3, 0.2, 1.7]).rank_scores
    assert ranked.tolist() == pytest.approx([0.0, 0.2, 1.0])


@pytest.mark.parametrize("index", [np.array([2, 0]), np.array([True, False, True])])
def test_rows_stay_together(index):
    boxes = [[i, 0, i + 1, 1] for i in range(3)]
    taken = make(boxes, mask_scores=[0.1, 0.2, 0.3]).take(index)
    rows = np.arange(3)[index]
    assert len(taken) == 2
    assert taken.boxes[:, 0].tolist() == rows.tolist()
    assert taken.masks[:, 0, 0].tolist() == rows.tolist()
    assert taken.mask_scores.tolist() == pytest.approx((rows * 0.1 + 0.1).tolist())
    assert make(boxes).take(index).mask_scores is None


def test_boxes_are_scaled_cut_and_dropped():
    boxes = [[-10, 5, 20, 30], [30, 30, 50, 70], [64, 0, 70, 5], [10, -8, 20, 0], [5, 5, 5, 9], [9, 9, 5, 12]]
    scaled = make(boxes).rescale(from_shape=(40, 64), to_shape=(80, 32))
    np.testing.assert_array_equal(scaled.boxes, [[0, 10, 10, 60], [15, 60, 25, 80]])
    assert scaled.boxes.dtype == np.float32
    assert scaled.masks[:, 0, 0].tolist() == [0, 1]


def test_without_detections_there_is_nothing_to_scale():
    none = make([]).rescale(from_shape=(8, 8), to_shape=(16, 16))
    assert (len(none), none.boxes.shape, none.masks.shape) == (0, (0, 4), (0, 4, 4))


def test_a_box_that_is_no_number_is_dropped():
    assert len(make([[np.nan, 0, 4, 4]]).rescale(from_shape=(8, 8), to_shape=(8, 8))) == 0


def test_sizes_of_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"rescaling from \(0, 8\) to \(8, 8\) px; need sizes above 0"):
        make([]).rescale(from_shape=(0, 8), to_shape=(8, 8))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("boxes", np.zeros((2, 4), np.float32)),
        ("mask_scores", np.zeros(2, np.float32)),
        ("class_id", np.zeros((3, 1), np.int64)),
        ("class_scores", np.zeros(3, np.float32)),
        ("masks", np.zeros((3, 4, 5), np.float32)),
        ("masks", np.zeros((2, 4, 4), np.float32)),
    ],
)
def test_arrays_of_different_lengths_are_refused(field, value):
    parts = vars(make([[0, 0, 1, 1]] * 3)) | {field: value}
    with pytest.raises(ShapeError, match=rf"detections of shapes .*{field} \(.*; need .*; try: "):
        Detections(**parts)


@pytest.mark.parametrize("rated", [True, False])
def test_outputs_of_a_batch_are_read_without_their_padding(rated):
    found = make([[0, 0, 1, 1], [2, 2, 4, 4], [0, 0, 0, 0]], mask_scores=[0.5, 0.4, 0.0])
    outputs = {
        "boxes": found.boxes, "scores": found.scores, "classes": found.class_id, "class_scores": found.class_scores,
        "masks": found.masks, "valid": np.array([True, True, False]),
    } | ({"mask_scores": found.mask_scores} if rated else {})  # fmt: skip
    batch = {name: np.stack([np.zeros_like(value), value]) for name, value in outputs.items()}
    assert len(read_detections(batch, 0)) == 0
    read = read_detections(batch, 1)
    expected = found.take(np.array([0, 1]))
    for name, value in vars(read).items():
        if name == "mask_scores" and not rated:
            assert value is None
        else:
            np.testing.assert_array_equal(value, getattr(expected, name), err_msg=name)
