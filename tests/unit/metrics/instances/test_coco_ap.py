"""Oracle: pycocotools, array by array."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellvision.errors import ConfigError, DataError
from cellvision.metrics.instances.coco_ap import AREAS, KINDS, RECALLS, compute_coco_ap
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import compute_overlaps, join_overlaps
from cellvision.types import IGNORE
from crowded_fields import draw_coco, to_fields


def run_pycocotools(truth, predictions, *, kind, max_dets, areas):
    """(precision (T, R, K, A, M), recall (T, K, A, M))."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = truth
        true.createIndex()
        # As published for LIVECell: without the boxes, so that the areas of predictions are those of their masks.
        drop = "bbox" if kind == "mask" else "segmentation"
        found = true.loadRes([{k: v for k, v in row.items() if k != drop} for row in predictions])
        evaluator = COCOeval(true, found, {"mask": "segm", "box": "bbox"}[kind])
        evaluator.params.maxDets = list(max_dets)
        evaluator.params.areaRng = [list(bounds) for bounds in AREAS[areas]]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def run_ours(pairs, *, classes=1, **settings):
    overlaps = join_overlaps([compute_overlaps(pred, truth) for pred, truth in pairs])
    names = ("background", *(f"type{k}" for k in range(1, classes + 1)))
    return compute_coco_ap(overlaps, classes=names, **settings)


CASES = [
    {"seed": 0, "classes": 1, "max_dets": (100, 500, 2000), "areas": "livecell"},
    {"seed": 1, "classes": 3, "max_dets": (1, 10, 100), "areas": "coco"},
    {"seed": 2, "classes": 2, "max_dets": (5, 12), "areas": "livecell", "steps": 1},
    {"seed": 3, "classes": 2, "max_dets": (3000,), "areas": "coco", "crowd": 0.5, "steps": 3},
    {"seed": 4, "classes": 4, "max_dets": (2, 3, 7), "areas": "livecell", "cells": 12, "crowd": 0.0},
    {"seed": 5, "classes": 1, "max_dets": (7, 150), "areas": "livecell", "images": 3, "cells": 150, "largest_px": 6},
    {"seed": 6, "classes": 1, "max_dets": (100,), "areas": "coco", "crowd": 1.0, "cells": 8},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed{case['seed']}")
def test_equal_to_pycocotools(case, kind):
    settings = {"max_dets": case["max_dets"], "areas": case["areas"]}
    drawn = {name: value for name, value in case.items() if name not in settings}
    truth, predictions = draw_coco(**drawn)
    precision, recall = run_pycocotools(truth, predictions, kind=kind, **settings)
    ours = run_ours(to_fields(truth, predictions), kind=kind, classes=case["classes"], **settings)
    np.testing.assert_allclose(ours.precision, precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.recall, recall, rtol=0, atol=1e-12)
    if case.get("crowd") != 1.0:
        assert 0.05 < precision[precision > -1].mean() < 0.95


def test_more_than_a_hundred_cells_need_more_than_a_hundred_predictions():
    pairs = to_fields(*draw_coco(5, images=3, cells=150, largest_px=6))
    found = run_ours(pairs, kind="mask", max_dets=(100, 2000)).to_dict()
    assert found["mask/ar_100"] < 0.8 * found["mask/ar_2000"]


def test_summary_is_the_one_of_coco():
    truth, predictions = draw_coco(1, classes=3)
    pairs = to_fields(truth, predictions)
    precision, recall = run_pycocotools(truth, predictions, kind="mask", max_dets=(1, 10, 100), areas="coco")
    ours = run_ours(pairs, kind="mask", classes=3, max_dets=(1, 10, 100), areas="coco")
    found = ours.to_dict()

    def average(values):
        return values[values > -1].mean()

    expected = {
        "ap": average(precision[..., 0, 2]),
        "ap50": average(precision[0, ..., 0, 2]),
        "ap75": average(precision[5, ..., 0, 2]),
        "ap_small": average(precision[..., 1, 2]),
        "ap_medium": average(precision[..., 2, 2]),
        "ap_large": average(precision[..., 3, 2]),
        "ar_1": average(recall[..., 0, 0]),
        "ar_10": average(recall[..., 0, 1]),
        "ar_100": average(recall[..., 0, 2]),
        "ar_small": average(recall[..., 1, 2]),
        "afnr": np.mean(1 - recall[..., 0, 2]),
        "ap_class_type2": average(precision[:, :, 1, 0, 2]),
        "ar_class_type3": average(recall[:, 2, 0, 2]),
    }
    assert {name: found[f"mask/{name}"] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert all(type(value) is float for value in found.values())
    assert ours.list_precisions()["0.75"] == pytest.approx(found["mask/ap75"])
    assert np.mean(list(ours.list_recalls().values())) == pytest.approx(found["mask/ar"])
    recalls, curve = ours.to_curves()["type1"]
    assert recalls is RECALLS
    assert curve.tolist() == precision[0, :, 0, 0, 2].tolist()


def test_boxes_can_have_scores_of_their_own():
    truth, predictions = draw_coco(7)
    for row in predictions:
        row["box_score"] = (row["score"] * 7.3) % 1
    pairs = to_fields(truth, predictions)
    expected = run_ours(to_fields(truth, [row | {"score": row["box_score"]} for row in predictions]), kind="box")
    scored = []
    for pred, true in pairs:
        rows = {name: getattr(pred, name) for name in ("shape", "class_id", "boxes")}
        field = InstanceField.from_rles(pred.rles, **rows, score=pred.score, box_score=(pred.score * 7.3) % 1)
        scored.append((field, true))
    assert (run_ours(scored, kind="box").precision == expected.precision).all()
    assert (run_ours(scored, kind="mask").precision == run_ours(pairs, kind="mask").precision).all()


def test_nothing_found_and_nothing_there():
    truth, _ = draw_coco(0)
    found = run_ours(to_fields(truth, []), kind="mask", classes=2).to_dict()
    assert (found["mask/ap"], found["mask/ar_100"], found["mask/afnr"]) == (0.0, 0.0, 1.0)
    assert "mask/ap_class_type2" not in found
    assert run_ours(to_fields(truth | {"annotations": []}, draw_coco(0)[1]), kind="mask").to_dict() == {}
    assert run_ours([], kind="box").to_dict() == {}


def test_a_cell_of_unknown_class_is_ignored_in_every_class():
    image = np.array([[1, 1, 0, 2, 2, 0, 3, 3]])
    truth = InstanceField.from_label_image(image, np.array([1, 2, IGNORE]))
    pred = InstanceField.from_label_image(image, np.array([1, 2, 1]), score=np.array([0.5, 0.5, 0.9]))
    both = InstanceField.from_rles(
        [*pred.rles, pred.rles[2]],
        shape=pred.shape,
        class_id=np.array([1, 2, 1, 2]),
        score=np.array([0.5, 0.5, 0.9, 0.9]),
    )
    found = run_ours([(both, truth)], kind="mask", classes=2).to_dict()
    assert (found["mask/ap_class_type1"], found["mask/ap_class_type2"]) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("bad", [(), (0, 5), (100, 10), (5, 5)])
def test_max_dets_must_ascend(bad):
    with pytest.raises(ConfigError, match=r"max_dets=.*need ascending numbers"):
        run_ours([], kind="mask", max_dets=bad)


def test_unknown_names_and_classes_are_refused():
    with pytest.raises(ConfigError, match="unknown kind 'masks'"):
        run_ours([], kind="masks")
    with pytest.raises(ConfigError, match="unknown areas 'live'"):
        run_ours([], kind="mask", areas="live")
    with pytest.raises(DataError, match=r"cells of class 1 to 3; need 1 to 2 \(type1, type2\)"):
        run_ours(to_fields(*draw_coco(1, classes=3)), kind="mask", classes=2)
