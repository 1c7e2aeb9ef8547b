"""The scores by which forms of a net are compared, against pycocotools and the scores of training."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellvision.bundle import Splitting
from cellvision.metrics.accuracy import HEADLINES, Accuracy, Found, choose_headlines
from cellvision.metrics.instances.mask_runs import encode_masks, find_runs
from cellvision.metrics.state import CellMetrics, PixelMetrics
from cellvision.runtime.cells import build_cells
from cellvision.runtime.detections.cells import build_detected_cells
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.masks import encode_detections
from cellvision.runtime.maps.splitting import measure_cells
from cellvision.types import IGNORE, Sample

CLASSES = ("background", "live", "dead")


def draw_truth(seed, *, classes=2, unknown=0):
    """A field of 9 square cells, the first ``unknown`` of them of unknown class."""
    rng = np.random.default_rng(seed)
    label_image = np.zeros((60, 60), np.int32)
    for index in range(9):
        top, left = 20 * (index // 3) + rng.integers(1, 6), 20 * (index % 3) + rng.integers(1, 6)
        label_image[top : top + rng.integers(8, 13), left : left + rng.integers(8, 13)] = index + 1
    cell_classes = rng.integers(1, classes + 1, 9)
    cell_classes[:unknown] = IGNORE
    image = rng.integers(0, 255, (1, 60, 60)).astype(np.uint8)
    return Sample(name=str(seed), group=str(seed), image=image, label_image=label_image, cell_classes=cell_classes)


def find_maps(sample, seed, classes=CLASSES, kind="viability"):
    """Cells and probabilities that are the truth, moved, with noise on them; half of the cells have the last class."""
    rng = np.random.default_rng(seed)
    shift = np.roll(sample.label_image, rng.integers(-3, 4), axis=1)
    known = np.where(rng.random(9) < 0.5, sample.cell_classes, len(classes) - 1)
    true = np.append(0, np.where(known == IGNORE, 1, known))[shift]
    probabilities = np.eye(len(classes))[true].transpose(2, 0, 1) + rng.random((len(classes), 60, 60)) * 1.2
    probabilities = (probabilities / probabilities.sum(0)).astype(np.float32)
    label_image = np.unique(shift, return_inverse=True)[1].reshape(shift.shape).astype(np.int32)
    cells = build_cells(
        measure_cells(label_image, sample.image, probabilities),
        classes=classes,
        channels=("a",),
        kind=kind,
        live_threshold=0.5,
        shape=(60, 60),
        label_image=label_image,
        pixel_size_um=None,
    )
    return Found(cells=cells, probabilities=probabilities)


def find_detections(sample, seed, classes):
    """Boxes of the true cells, moved, some twice, with scores of any height."""
    rng = np.random.default_rng(seed)
    boxes, of_class = [], []
    for label in range(1, 10):
        for _ in range(rng.integers(0, 3)):
            ys, xs = np.nonzero(sample.label_image == label)
            boxes.append(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) + rng.normal(0, 1.5, 4))
            of_class.append(rng.integers(1, len(classes)))
    count = len(boxes)
    class_id = np.array(of_class, np.int64)
    scores = rng.random(count).astype(np.float32)
    class_scores = np.zeros((count, len(classes) - 1), np.float32)
    class_scores[np.arange(count), class_id - 1] = scores
    return Detections(
        boxes=np.array(boxes, np.float32),
        scores=scores,
        mask_scores=None,
        class_id=class_id,
        class_scores=class_scores,
        masks=np.ones((count, 28, 28), np.float32),
    )


def find_instances(sample, seed, classes):
    detections = find_detections(sample, seed, classes)
    splitting = Splitting(method="instances", score_threshold=0.3, min_area_px=1)
    cells = build_detected_cells(detections, sample.image, splitting=splitting, classes=classes, channels=("a",))
    return Found(cells=cells, detections=detections)


def test_maps_score_as_in_training():
    accuracy, pixel, cell = Accuracy(CLASSES), PixelMetrics(CLASSES), CellMetrics(CLASSES)
    for seed in range(4):
        sample = draw_truth(seed, unknown=seed % 3)
        found = find_maps(sample, seed + 50)
        accuracy.add(sample, found)
        pixel.update(torch.from_numpy(found.probabilities)[None], torch.from_numpy(sample.class_map)[None])
        cells = found.cells
        cell.update(cells.label_image, cells.class_id, cells.p_live, sample.label_image, sample.cell_classes)
    scores, expected = accuracy.compute(), pixel.compute() | cell.compute()
    assert {"pixel/miou", "cell/f1", "cell/live_dead_f1", "field/viability_error_pp"} <= scores.keys()
    for name, value in scores.items():
        assert value == pytest.approx(expected[name], abs=1e-12)
    assert 0 < scores["pixel/miou"] < 1
    assert 0 < scores["field/viability_error_pp"] < 100
    assert accuracy.cells == 36


def score_with_pycocotools(fields, classes):
    """Mask AP of (sample, detections) by pycocotools, at up to 2000 predictions."""
    images, truths, preds = [], [], []
    for number, (sample, detections) in enumerate(fields, start=1):
        images.append({"id": number, "height": 60, "width": 60})
        labels, runs = find_runs(sample.label_image)
        for label, rle in zip(labels, encode_masks(runs), strict=True):
            class_id = int(sample.cell_classes[label - 1])
            area = int((sample.label_image == label).sum())
            truths.append({"image_id": number, "category_id": class_id, "segmentation": rle, "area": area})
        rles = encode_detections(detections, shape=(60, 60))
        for rle, class_id, score in zip(rles, detections.class_id, detections.scores, strict=True):
            preds.append({"image_id": number, "category_id": int(class_id), "segmentation": rle, "score": float(score)})
    truths = [one | {"id": at, "iscrowd": 0, "bbox": [0, 0, 1, 1]} for at, one in enumerate(truths, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        names = [{"id": k, "name": name} for k, name in enumerate(classes) if k]
        coco.dataset = {"images": images, "annotations": truths, "categories": names}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(preds), "segm")
        evaluation.params.maxDets = [1, 10, 2000]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    return precision[precision > -1].mean(), precision[0][precision[0] > -1].mean()


@pytest.mark.parametrize("classes", [("background", "cell"), CLASSES])
def test_mask_ap_is_that_of_pycocotools(classes):
    accuracy, fields = Accuracy(classes), []
    for seed in range(3):
        sample = draw_truth(seed, classes=len(classes) - 1)
        found = find_instances(sample, seed + 50, classes)
        accuracy.add(sample, found)
        fields.append((sample, found.detections))
    scores = accuracy.compute()
    ap, ap50 = score_with_pycocotools(fields, classes)
    assert scores["mask/ap"] == pytest.approx(ap, abs=1e-9)
    assert scores["mask/ap50"] == pytest.approx(ap50, abs=1e-9)
    assert 0.05 < ap < 0.95
    assert "pixel/miou" not in scores  # nothing was said of pixels


def test_ap_dsb_counts_what_was_delivered():
    """9 true cells; the first 5 are found as they are, and one more where there is none."""
    sample = draw_truth(0, classes=1)
    empty = np.argwhere(sample.label_image == 0)[0]
    edges = [np.nonzero(sample.label_image == label) for label in range(1, 6)]
    boxes = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] for ys, xs in edges]
    boxes.append([empty[1], empty[0], empty[1] + 1, empty[0] + 1])
    detections = Detections(
        boxes=np.array(boxes, np.float32),
        scores=np.full(6, 0.9, np.float32),
        mask_scores=None,
        class_id=np.ones(6, np.int64),
        class_scores=np.full((6, 1), 0.9, np.float32),
        masks=np.ones((6, 28, 28), np.float32),
    )
    classes = ("background", "cell")
    splitting = Splitting(method="instances", min_area_px=1)
    cells = build_detected_cells(detections, sample.image, splitting=splitting, classes=classes, channels=("a",))
    accuracy = Accuracy(classes)
    accuracy.add(sample, Found(cells=cells, detections=detections))
    assert accuracy.compute()["instance/ap_dsb_50"] == 5 / 10


def test_truth_without_classes_scores_cells_alone():
    """A net of live and dead cells beside label images: every cell is just a cell."""
    sample = draw_truth(3, classes=1)
    accuracy, same = Accuracy(("background", "cell")), Accuracy(("background", "cell"))
    found = find_maps(draw_truth(3, classes=2), 60)
    accuracy.add(sample, found)
    joined = np.stack([found.probabilities[0], found.probabilities[1:].max(0)])
    alone = find_maps(sample, 60, ("background", "cell"), "semantic")
    same.add(sample, Found(cells=alone.cells, probabilities=joined))
    assert accuracy.compute() == same.compute()
    assert "cell/live_dead_f1" not in accuracy.compute()
    instances = Accuracy(("background", "cell"))
    instances.add(sample, find_instances(sample, 5, CLASSES))
    assert instances.compute()["mask/ap"] > 0


def test_undefined_scores_are_absent():
    empty = Sample(
        name="a",
        group="a",
        image=np.zeros((1, 60, 60), np.uint8),
        label_image=np.zeros((60, 60), np.int32),
        cell_classes=np.zeros(0, np.int64),
    )
    accuracy = Accuracy(("background", "cell"))
    nothing = find_detections(draw_truth(0), 0, ("background", "cell")).take(np.zeros(0, np.int64))
    splitting = Splitting(method="instances")
    cells = build_detected_cells(
        nothing, empty.image, splitting=splitting, classes=("background", "cell"), channels=("a",)
    )
    accuracy.add(empty, Found(cells=cells, detections=nothing))
    assert accuracy.compute() == {}


def test_headlines_say_what_is_lost_in_points():
    (miou,) = choose_headlines("semantic", ("background", "cell"))
    assert miou.lose(0.80, 0.79) == 1.0
    assert miou.lose(0.5, 0.52) == -2.0
    error = choose_headlines("viability", CLASSES)[-1]
    assert error.score == "field/viability_error_pp"
    assert error.lose(3.0, 5.5) == 2.5  # an error that grows is a loss
    assert choose_headlines("instance", ("background", "cell")) == HEADLINES["instance"]
    assert error in choose_headlines("instance", CLASSES)
