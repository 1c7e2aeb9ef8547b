"""Oracles: the stored answers of the reference detector, torch's grid_sample, pycocotools."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cellvision.errors import ConfigError
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.masks import MaskCrop, crop_mask, encode_detections, encode_rle, paint_detections

SHARED = Path(os.environ.get("CELLVISION_SHARED") or Path(__file__).resolve().parents[5] / "shared")
GOLDEN = SHARED / "golden" / "centermask2" / "lite-V-19-slim.npz"


def fill(crop, shape):
    image = np.zeros(shape, bool)
    image[crop.window] = crop.mask
    return image


def detect(boxes, scores, masks=None, *, mask_scores=None):
    count = len(boxes)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(count, 4),
        scores=np.array(scores, np.float32),
        mask_scores=mask_scores,
        class_id=np.ones(count, np.int64),
        class_scores=np.ones((count, 1), np.float32),
        masks=np.ones((count, 28, 28), np.float32) if masks is None else masks,
    )


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"the reference answers are not at {GOLDEN}")
def test_masks_are_those_of_the_reference():
    gold = np.load(GOLDEN)
    found = detect(gold["eval.proposal.boxes"], gold["eval.proposal.scores"], gold["eval.mask28"])
    size = tuple(gold["eval.final.output_size"].tolist())
    final = found.rescale(from_shape=gold["image"].shape[1:], to_shape=size)
    truth = np.unpackbits(gold["eval.final.masks_packed"], axis=1, count=size[0] * size[1])
    truth = truth.reshape(-1, *size).astype(bool)
    assert len(final) == len(truth) == 82
    np.testing.assert_allclose(final.boxes, gold["eval.final.boxes"], atol=5e-3)
    np.testing.assert_allclose(final.scores, gold["eval.final.scores"], atol=2e-5)
    masks = [fill(crop_mask(mask, box, shape=size), size) for mask, box in zip(final.masks, final.boxes, strict=True)]
    wrong = (np.array(masks) != truth).sum(axis=(1, 2))
    assert (wrong <= 1e-4 * truth.sum(axis=(1, 2)) + 3).all(), wrong


@pytest.mark.parametrize("threshold", [0.5, 0.05, 0.9])
@pytest.mark.parametrize("side", [28, 14, 1])
def test_crops_agree_with_grid_sample(side, threshold):
    import torch
    from torch.nn.functional import grid_sample

    rng = np.random.default_rng(side)
    shape = (61, 83)
    rows, columns = (torch.arange(length, dtype=torch.float64) + 0.5 for length in shape)
    compared = 0
    for _ in range(60):
        start = rng.uniform(-15, 75, 2)
        left, top, right, bottom = box = np.concatenate([start, start + rng.uniform(0.3, 60, 2)])
        probability = rng.random((side, side))
        grid_y, grid_x = torch.meshgrid(
            (rows - top) / (bottom - top) * 2 - 1, (columns - left) / (right - left) * 2 - 1, indexing="ij"
        )
        values = grid_sample(
            torch.from_numpy(probability)[None, None],
            torch.stack([grid_x, grid_y], dim=-1)[None],
            align_corners=False,
        )[0, 0].numpy()
        sure = np.abs(values - threshold) > 1e-6
        crop = crop_mask(probability, box, shape=shape, threshold=threshold)
        np.testing.assert_array_equal(fill(crop, shape)[sure], (values >= threshold)[sure])
        compared += np.count_nonzero(values >= threshold)
    assert compared > 40


def test_a_mask_of_the_threshold_itself_is_whole():
    crop = crop_mask(np.full((28, 28), 0.5, np.float32), np.array([3, 2, 60, 50], np.float32), shape=(64, 64))
    inside = fill(crop, (64, 64))
    assert inside[4:48, 6:57].all()


@pytest.mark.parametrize(
    "box", [[90, 5, 99, 9], [5, -9, 9, -2], [4, 4, 4, 9], [9, 4, 5, 9], [np.nan, 0, 5, 5], [-np.inf, 0, np.inf, 5]]
)
def test_boxes_without_pixels_are_empty(box):
    crop = crop_mask(np.ones((28, 28)), np.array(box), shape=(40, 50))
    assert not crop.mask.any()
    assert not fill(crop, (40, 50)).any()
    assert (
        encode_rle(crop, (40, 50))["counts"] == coco_mask.encode(np.zeros((40, 50), np.uint8, "F"))["counts"].decode()
    )


def paint(found, *, shape=(20, 30), score_threshold=0.1, **options):
    return paint_detections(found, shape=shape, score_threshold=score_threshold, **options)


def test_a_pixel_stays_with_the_best():
    found = detect([[2, 2, 12, 12], [8, 2, 20, 12], [0, 14, 5, 19]], [0.6, 0.9, 0.05])
    label_image, kept = paint(found)
    expected = np.zeros((20, 30), np.int32)
    expected[2:12, 2:12] = 2
    expected[2:12, 8:20] = 1
    np.testing.assert_array_equal(label_image, expected)
    assert label_image.dtype == np.int32
    assert kept.tolist() == [1, 0]
    assert kept.dtype == np.int64


def test_mask_scores_decide_and_equal_scores_keep_their_order():
    boxes = [[2, 2, 12, 12], [7, 2, 17, 12]]
    assert paint(detect(boxes, [0.5, 0.5]))[1].tolist() == [0, 1]
    assert paint(detect(boxes, [0.9, 0.5], mask_scores=np.array([0.2, 0.4], np.float32)))[1].tolist() == [1, 0]
    assert paint(detect(boxes, [0.9, 0.5], mask_scores=np.array([np.nan, 0.4], np.float32)))[1].tolist() == [1]


@pytest.mark.parametrize(("min_visible", "kept"), [(0.0, [0, 1]), (0.3, [0, 1]), (0.31, [0])])
def test_a_hidden_detection_is_dropped_and_its_pixels_stay_free(min_visible, kept):
    found = detect([[2, 2, 12, 12], [5, 2, 15, 12]], [0.9, 0.8])
    label_image, indices = paint(found, min_visible=min_visible)
    assert indices.tolist() == kept
    assert label_image[5, 13] == (2 if 1 in kept else 0)


def test_pixels_of_what_was_dropped_go_to_the_next():
    found = detect([[2, 2, 12, 12], [4, 2, 14, 12], [12, 2, 14, 12]], [0.9, 0.8, 0.7])
    label_image, kept = paint(found)
    assert kept.tolist() == [0, 2]
    assert (label_image[2:12, 12:14] == 2).all()


def test_a_cell_under_a_thin_one_keeps_both_pieces():
    label_image, kept = paint(detect([[2, 2, 22, 12], [10, 0, 13, 19]], [0.6, 0.9]))
    assert kept.tolist() == [1, 0]
    assert (label_image[2:12, 2:10] == 2).all()
    assert (label_image[2:12, 13:22] == 2).all()


def test_small_detections_are_dropped():
    found = detect([[2, 2, 5, 5], [10, 10, 14, 14], [12, 10, 16, 14]], [0.9, 0.8, 0.7])
    assert paint(found, min_area_px=9)[1].tolist() == [0, 1]
    assert paint(found, min_area_px=8)[1].tolist() == [0, 1, 2]
    assert paint(found, min_area_px=10)[1].tolist() == [1]


def test_painting_is_what_whole_masks_give():
    rng = np.random.default_rng(3)
    start = rng.uniform(-5, 55, (60, 2))
    found = detect(np.concatenate([start, start + rng.uniform(3, 25, (60, 2))], axis=1), rng.random(60),
                   rng.random((60, 28, 28)).astype(np.float32))  # fmt: skip
    expected, kept = np.zeros((64, 64), np.int32), []
    for index in np.argsort(-found.scores):
        whole = fill(crop_mask(found.masks[index], found.boxes[index], shape=(64, 64)), (64, 64))
        free = whole & (expected == 0)
        if found.scores[index] >= 0.2 and free.any() and free.sum() >= 0.5 * whole.sum():
            kept.append(index)
            expected[free] = len(kept)
    label_image, indices = paint(found, shape=(64, 64), score_threshold=0.2)
    np.testing.assert_array_equal(label_image, expected)
    assert indices.tolist() == kept
    assert len(kept) > 10


def test_nothing_detected_is_an_empty_image():
    label_image, kept = paint(detect([], [], np.zeros((0, 28, 28), np.float32)))
    assert label_image.shape == (20, 30)
    assert not label_image.any()
    assert kept.shape == (0,)


def test_three_thousand_cells_take_no_time_and_no_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    centres = rng.random((3000, 2)) * [704, 520]
    half = rng.uniform(3, 9, (3000, 2))
    found = detect(np.concatenate([centres - half, centres + half], axis=1), rng.random(3000))
    start = time.process_time()  # the clock would tell of what else the machine does
    label_image, kept = paint(found, shape=(520, 704), score_threshold=0.0)
    seconds = time.process_time() - start
    assert len(kept) > 1500
    assert label_image.max() == len(kept)
    assert seconds < 2.0, "0.1 s on one idle core"
    tracemalloc.start()
    paint(found, shape=(520, 704), score_threshold=0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 520 * 704 + 2**20, "the label image, and one crop at a time"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold=1.5; need 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold=nan; need 0 to 1"),
        ({"mask_threshold": 0.0}, "mask_threshold=0.0; need above 0, at most 1"),
        ({"min_area_px": 0}, "min_area_px=0; need 1 or more"),
        ({"min_visible": -0.1}, "min_visible=-0.1; need 0 to 1"),
    ],
)
def test_thresholds_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        paint(detect([], [], np.zeros((0, 28, 28), np.float32)), **options)


def encode_whole(image):
    packed = coco_mask.encode(np.asfortranarray(image, dtype=np.uint8))
    return {"size": packed["size"], "counts": packed["counts"].decode("ascii")}


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_rle_is_that_of_pycocotools(density):
    rng = np.random.default_rng(int(10 * density))
    for _ in range(80):
        shape = tuple(rng.integers(1, 30, 2).tolist())
        top, left = (int(rng.integers(0, length)) for length in shape)
        height, width = (
            int(rng.integers(1, length - start + 1)) for length, start in zip(shape, (top, left), strict=True)
        )
        crop = MaskCrop(top=top, left=left, mask=rng.random((height, width)) < density)
        assert encode_rle(crop, shape) == encode_whole(fill(crop, shape))


@pytest.mark.parametrize("rows", [slice(0, 9), slice(0, 4), slice(5, 9), slice(3, 4)])
@pytest.mark.parametrize("columns", [slice(0, 7), slice(0, 1), slice(6, 7), slice(2, 4)])
def test_rle_at_all_borders(rows, columns):
    image = np.zeros((9, 7), bool)
    image[rows, columns] = True
    crop = MaskCrop(top=rows.start, left=columns.start, mask=image[rows, columns])
    assert encode_rle(crop, (9, 7)) == encode_whole(image)


def test_detections_are_encoded_whole_in_their_order():
    found = detect([[2, 2, 12, 12], [8, 2, 20, 12], [28, 18, 40, 30]], [0.6, 0.9, 0.1])
    areas = [int(coco_mask.area(rle)) for rle in encode_detections(found, shape=(20, 30))]
    assert areas == [100, 120, 4]
