"""Oracle: pycocotools.mask.iou on all pairs."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cellvision.errors import DataError, ShapeError
from cellvision.metrics.instances import overlaps as module
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import LEAST_BOX_IOU, compute_overlaps, join_overlaps
from crowded_fields import draw_coco, to_fields


def to_table(shape, rows, columns, values):
    table = np.zeros(shape)
    table[rows, columns] = values
    return table


def compute_oracle(pred, truth):
    """(D, G) overlaps of masks and of boxes."""
    crowd = truth.ignored.astype(int).tolist()
    masks = coco_mask.iou([dict(r) for r in pred.rles], [dict(r) for r in truth.rles], crowd)
    sizes = [np.concatenate([f.boxes[:, :2], f.boxes[:, 2:] - f.boxes[:, :2]], axis=1) for f in (pred, truth)]
    boxes = coco_mask.iou(*sizes, crowd)
    shape = (len(pred), len(truth))
    return np.reshape(masks, shape), np.reshape(boxes, shape)


@pytest.mark.parametrize("pairs_at_a_time", [2**20, 7])
@pytest.mark.parametrize("seed", range(3))
def test_all_pairs_that_meet_and_no_others(seed, pairs_at_a_time, monkeypatch):
    monkeypatch.setattr(module, "_MOST_PAIRS", pairs_at_a_time)
    for pred, truth in to_fields(*draw_coco(seed, images=3, cells=25, crowd=0.2)):
        found = compute_overlaps(pred, truth)
        masks, boxes = compute_oracle(pred, truth)
        share = found.shared / found.pred_area[found.pred]
        iou = np.where(found.ignored[found.true], share, found.compute_mask_iou())
        np.testing.assert_allclose(to_table(masks.shape, found.pred, found.true, iou), masks, atol=1e-12)
        assert np.unique(found.pred * 1000 + found.true).size == found.pred.size
        boxes = np.where(boxes >= LEAST_BOX_IOU, boxes, 0)
        mine = to_table(boxes.shape, found.box_pred, found.box_true, found.box_iou)
        np.testing.assert_allclose(mine, boxes, atol=1e-12)


def test_boxes_without_extent_overlap_nothing():
    image = np.array([[1, 1, 1, 1]])
    truth = InstanceField.from_rles(
        InstanceField.from_label_image(image, np.array([1])).rles, shape=(1, 4), class_id=np.array([1]),
        ignored=np.array([True]),
    )  # fmt: skip
    pred = InstanceField.from_rles(
        truth.rles, shape=(1, 4), class_id=np.array([1]), score=np.ones(1), boxes=np.array([[2.0, 0, 2, 1]])
    )
    found = compute_overlaps(pred, truth)
    assert (found.box_iou.size, found.shared.tolist()) == (0, [4])


def test_joined_fields_are_the_fields_in_a_row():
    pairs = to_fields(*draw_coco(3, images=4, classes=2))
    parts = [compute_overlaps(pred, truth) for pred, truth in pairs]
    joined = join_overlaps(parts)
    assert joined.fields == 4
    for number, part in enumerate(parts):
        only = joined.select(np.flatnonzero(joined.pred_field == number), np.flatnonzero(joined.true_field == number))
        for name, values in vars(part).items():
            if name in ("pred_field", "true_field"):
                assert (getattr(only, name) == number).all()
            elif name != "fields":
                assert getattr(only, name).tolist() == values.tolist()
    assert join_overlaps([]).fields == 0


def test_chosen_cells_keep_their_overlaps_in_the_order_asked_for():
    pred, truth = to_fields(*draw_coco(4, images=3))[0]
    whole = compute_overlaps(pred, truth)
    rng = np.random.default_rng(0)
    preds, truths = (rng.permutation(len(field))[: len(field) // 2] for field in (pred, truth))
    some = whole.select(preds, truths)
    shape = (len(pred), len(truth))
    expected = to_table(shape, whole.pred, whole.true, whole.shared)[np.ix_(preds, truths)]
    assert (to_table(expected.shape, some.pred, some.true, some.shared) == expected).all()
    assert some.score.tolist() == pred.score[preds].tolist()
    assert some.true_size.tolist() == truth.areas[truths].tolist()


def test_misfits_are_refused():
    one, other = (InstanceField.from_rles([], shape=shape, class_id=np.zeros(0, int)) for shape in ((4, 5), (5, 4)))
    scored = InstanceField.from_rles([], shape=(4, 5), class_id=np.zeros(0, int), score=np.zeros(0))
    with pytest.raises(ShapeError, match=r"an image of \(4, 5\) px and true ones in one of \(5, 4\)"):
        compute_overlaps(scored, other)
    with pytest.raises(DataError, match="without scores"):
        compute_overlaps(one, one)
    assert compute_overlaps(scored, one).pred.size == 0
