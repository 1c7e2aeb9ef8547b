"""Oracles: the definitions written out pixel by pixel, scipy's assignment, torchmetrics, our label-image metrics."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchmetrics.detection import PanopticQuality

from cellvision.errors import ConfigError
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import compute_overlaps, join_overlaps
from cellvision.metrics.instances.scores import (
    IOUS,
    compute_instance_scores,
    compute_panoptic_per_class,
    select_class,
)
from cellvision.metrics.matching import match_cells
from cellvision.runtime.pictures.cell_errors import classify_errors
from cellvision.types import IGNORE
from crowded_fields import draw_coco, draw_label_images, to_fields

SEEDS = range(8)
EMPTY = np.zeros((70, 80), np.int32)
NO_TRUTH, NO_CELLS, NO_PRED = (draw_label_images(9)[0], EMPTY), (EMPTY, EMPTY), (EMPTY, draw_label_images(9)[1])


def score_label_images(pairs, *, truths=None, threshold=0.5):
    parts = []
    for number, (pred, truth) in enumerate(pairs):
        ones = np.ones(pred.max(), np.int64)
        classes = np.ones(truth.max(), np.int64) if truths is None else truths[number]
        field = InstanceField.from_label_image(pred, ones, score=ones.astype(float))
        parts.append(compute_overlaps(field, InstanceField.from_label_image(truth, classes)))
    return compute_instance_scores(join_overlaps(parts), score_threshold=threshold)


def compute_tables(pred, truth):
    """Shared pixels and IoU of every pair, and the areas."""
    p, t = (np.stack([image == label for label in np.unique(image)[1:]] or [EMPTY[:0]]) for image in (pred, truth))
    p, t = (m.reshape(len(m), -1).astype(np.int64) if m.size else np.zeros((0, EMPTY.size), int) for m in (p, t))
    shared, p_area, t_area = p @ t.T, p.sum(1), t.sum(1)
    return shared, shared / np.maximum(p_area[:, None] + t_area - shared, 1), p_area, t_area


def compute_dsb(tables, iou, *, exceed):
    """(TP, FP + FN + TP) of each field."""
    counts = []
    for _, overlap, p_area, t_area in tables:
        near = overlap > iou if exceed else overlap >= iou
        rows, columns = linear_sum_assignment(near, maximize=True)
        hits = near[rows, columns].sum()
        counts.append((hits, len(p_area) + len(t_area) - hits))
    return np.array(counts)


def compute_aji(shared, overlap, p_area, t_area):
    """Kumar et al. 2017, as printed there."""
    both, whole, used = 0, 0, set()
    for t in range(len(t_area)):
        best = overlap[:, t].argmax() if len(p_area) and overlap[:, t].max() > 0 else None
        if best is None:
            whole += t_area[t]
        else:
            both += shared[best, t]
            whole += p_area[best] + t_area[t] - shared[best, t]
            used.add(best)
    whole += sum(area for p, area in enumerate(p_area) if p not in used)
    return both / whole


def compute_tracking(tables):
    """SEG and DET as the Cell Tracking Challenge defines them, cell by cell."""
    jaccards, cost, truths = [], 0, 0
    for shared, overlap, p_area, t_area in tables:
        stands_for = np.zeros(len(p_area), int)
        for t in range(len(t_area)):
            cover = [p for p in range(len(p_area)) if shared[p, t] > 0.5 * t_area[t]]
            jaccards.append(overlap[cover[0], t] if cover else 0.0)
            cost += 0 if cover else 10
            stands_for[cover] += 1
        cost += sum(1 if n == 0 else 5 * (n - 1) for n in stands_for)
        truths += len(t_area)
    return np.mean(jaccards), 1 - min(cost, 10 * truths) / (10 * truths)


def test_equal_to_the_definitions_on_label_images():
    pairs = [draw_label_images(seed) for seed in SEEDS] + [NO_TRUTH, NO_CELLS, NO_PRED]
    found = score_label_images(pairs)
    tables = [compute_tables(*pair) for pair in pairs]
    for iou, value in zip(IOUS, found.ap_dsb, strict=True):
        hits, cells = compute_dsb(tables, iou, exceed=False).sum(0)
        assert value == pytest.approx(hits / cells)
    strict = [compute_dsb(tables, iou, exceed=True) for iou in IOUS]
    per_field = [np.mean([counts[f, 0] / counts[f, 1] for counts in strict]) for f in range(len(pairs)) if f != 9]
    assert found.kaggle_map == pytest.approx(np.mean(per_field))
    assert found.aji == pytest.approx(np.mean([compute_aji(*table) for f, table in enumerate(tables) if f != 9]))
    assert (found.seg, found.det) == pytest.approx(compute_tracking(tables))
    assert all(0.05 < value < 0.9 for value in (found.aji, found.seg, found.det, found.kaggle_map))


def test_panoptic_quality_is_the_one_of_torchmetrics():
    pairs = [draw_label_images(seed) for seed in SEEDS]
    oracle = PanopticQuality(things={1}, stuffs={0}, return_per_class=True, return_sq_and_rq=True)
    for pair in pairs:
        pred, truth = (torch.from_numpy(np.stack([image > 0, image], axis=-1).astype(np.int64)) for image in pair)
        oracle.update(pred[None], truth[None])
    of_things = oracle.compute()[list(oracle.cat_id_to_continuous_id).index(1)]
    found = score_label_images(pairs)
    assert (found.pq, found.sq, found.rq) == pytest.approx(of_things.tolist(), rel=1e-6)


def test_kinds_of_errors_are_those_of_the_error_picture():
    pairs = [draw_label_images(seed) for seed in range(40)]
    found = score_label_images(pairs)
    expected = [classify_errors(*pair).counts for pair in pairs]
    for kind in ("found", "missed", "false", "merged", "split", "inexact"):
        assert getattr(found, kind) == sum(counts[kind] for counts in expected)
        assert getattr(found, kind) > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_uncertain_cells_count_as_in_the_cell_scores(seed):
    pred, truth = draw_label_images(seed)
    classes = np.where(np.random.default_rng(seed).random(truth.max()) < 0.3, IGNORE, 1)
    ignore = np.concatenate([[False], classes == IGNORE])[truth]
    oracle = match_cells(pred, truth, ignore=ignore)
    found = score_label_images([(pred, truth)], truths=[classes])
    assert oracle.left_out_true_ids.size > 2
    assert found.pred_count == oracle.pred_ids.size + oracle.extra_ids.size
    assert found.true_count == oracle.true_ids.size + oracle.missed_ids.size
    assert found.precision == pytest.approx(oracle.true_ids.size / found.pred_count)
    assert found.recall == pytest.approx(oracle.true_ids.size / found.true_count)
    assert found.f1 == pytest.approx(2 * oracle.true_ids.size / (found.pred_count + found.true_count))


def test_a_cell_found_twice_is_found_once_and_its_double_false():
    image = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 2]])
    truth = InstanceField.from_label_image(image, np.array([1, 1]))
    pred = InstanceField.from_rles(
        [truth.rles[0]] * 3, shape=(1, 9), class_id=np.ones(3, int), score=np.array([0.6, 0.9, 0.2])
    )
    found = compute_instance_scores(compute_overlaps(pred, truth), score_threshold=0.5)
    assert (found.pred_count, found.found, found.false, found.missed, found.split) == (2, 1, 1, 1, 0)
    assert (found.precision, found.recall, found.seg, found.aji) == (0.5, 0.5, 0.5, 1 / 3)
    assert found.det == pytest.approx(1 - 11 / 20)
    assert found.ap_dsb[0] == pytest.approx(1 / 3)


def test_the_surer_of_two_has_the_cell_they_both_reach():
    truth = InstanceField.from_label_image(np.array([[1, 1, 1, 1, 1, 1]]), np.array([1]))
    images = [np.array([[1, 1, 1, 1, 1, 0]]), np.array([[1, 1, 1, 1, 1, 1]])]
    rles = [InstanceField.from_label_image(image, np.array([1])).rles[0] for image in images]
    for score, sq in (([0.9, 0.8], 5 / 6), ([0.8, 0.9], 1.0)):
        pred = InstanceField.from_rles(rles, shape=(1, 6), class_id=np.ones(2, int), score=np.array(score))
        assert compute_instance_scores(compute_overlaps(pred, truth), score_threshold=0).sq == pytest.approx(sq)


def test_undefined_scores_are_absent():
    nothing = score_label_images([NO_CELLS]).to_dict()
    assert nothing.pop("instance/true_count") == nothing.pop("instance/pred_count") == 0
    assert set(nothing) == {f"instance/{kind}" for kind in ("found", "missed", "false", "merged", "split", "inexact")}
    no_truth = score_label_images([NO_TRUTH]).to_dict()
    assert (no_truth["instance/precision"], no_truth["instance/aji"], no_truth["instance/pq"]) == (0.0, 0.0, 0.0)
    assert not {"instance/seg", "instance/det", "instance/recall", "instance/sq"} & set(no_truth)
    no_pred = score_label_images([NO_PRED]).to_dict()
    assert [no_pred[f"instance/{name}"] for name in ("recall", "aji", "seg", "det", "kaggle_map")] == [0.0] * 5
    for values in (nothing, no_truth, no_pred):
        assert all(type(value) is float for value in values.values())
        assert not any(np.isnan(value) for value in values.values())
    assert compute_instance_scores(join_overlaps([]), score_threshold=0.5).to_dict()["instance/missed"] == 0.0


def test_classes_apart():
    pairs = to_fields(*draw_coco(2, classes=2, crowd=0))
    whole = join_overlaps([compute_overlaps(pred, truth) for pred, truth in pairs])
    found = compute_panoptic_per_class(whole, ("background", "a", "b"), score_threshold=0.3)
    for k, name in enumerate("ab", start=1):
        parts = []
        for pred, truth in pairs:
            sides = []
            for field in (pred, truth):
                rows = np.flatnonzero(field.class_id == k)
                values = {n: getattr(field, n) for n in ("class_id", "score", "ignored")}
                values = {n: None if v is None else v[rows] for n, v in values.items()}
                sides.append(InstanceField.from_rles([field.rles[i] for i in rows], shape=field.shape, **values))
            parts.append(compute_overlaps(*sides))
        expected = compute_instance_scores(join_overlaps(parts), score_threshold=0.3)
        assert found[f"instance/pq_{name}"] == pytest.approx(expected.pq)
        assert compute_instance_scores(select_class(whole, k), score_threshold=0.3).to_dict() == expected.to_dict()
    assert found["instance/mpq"] == pytest.approx((found["instance/pq_a"] + found["instance/pq_b"]) / 2)
    assert compute_panoptic_per_class(whole, ("background", "a"), score_threshold=0.3) == {}


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="score_threshold=nan"):
        score_label_images([NO_CELLS], threshold=float("nan"))
