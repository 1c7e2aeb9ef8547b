"""Oracle: pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from cellvision.errors import DataError
from cellvision.metrics.instances.mask_runs import decode_masks, encode_masks, find_rle_fault, find_runs

LABELS = array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: arrays(np.int32, shape, elements=st.integers(0, 4))
)


@settings(max_examples=200, deadline=None)
@given(image=LABELS)
def test_masks_of_a_label_image_are_those_of_pycocotools(image):
    labels, runs = find_runs(image)
    assert labels.tolist() == [label for label in np.unique(image) if label]
    rles = encode_masks(runs)
    for label, rle, box, area in zip(labels, rles, runs.compute_boxes(), runs.compute_areas(), strict=True):
        oracle = coco_mask.encode(np.asfortranarray(image == label, np.uint8))
        assert rle == {"size": list(image.shape), "counts": oracle["counts"].decode()}
        left, top, width, height = coco_mask.toBbox(oracle)
        assert box.tolist() == [left, top, left + width, top + height]
        assert area == coco_mask.area(oracle)
    again = decode_masks(rles, image.shape)
    for name in ("mask", "start", "end"):
        assert getattr(again, name).tolist() == getattr(runs, name).tolist()


def test_large_images_and_bytes():
    image = np.zeros((3000, 2000), np.int32)
    image[7:2500, 5:1500:3] = 4
    image[2990:, 1900:] = 9
    _, runs = find_runs(image)
    for rle, label in zip(encode_masks(runs), (4, 9), strict=True):
        oracle = coco_mask.encode(np.asfortranarray(image == label, np.uint8))
        assert rle["counts"].encode() == oracle["counts"]
        assert decode_masks([oracle], image.shape).compute_areas().tolist() == [np.sum(image == label)]


def test_masks_without_pixels_have_no_run():
    empty = coco_mask.encode(np.zeros((3, 4), np.uint8, order="F"))
    full = coco_mask.encode(np.ones((3, 4), np.uint8, order="F"))
    runs = decode_masks([empty, full, empty], (3, 4))
    assert runs.compute_areas().tolist() == [0, 12, 0]
    assert runs.compute_boxes().tolist() == [[0, 0, 0, 0], [0, 0, 4, 3], [0, 0, 0, 0]]
    assert [rle["counts"].encode() for rle in encode_masks(runs)] == [rle["counts"] for rle in (empty, full, empty)]
    assert encode_masks(decode_masks([], (3, 4))) == ()


GOOD = {"size": [2, 3], "counts": "222"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"size": [3, 2], "counts": "222"}, r"RLE of size \[3, 2\] in an image of \[2, 3\]"),
        ({"size": [2, 3], "counts": ""}, "RLE counts are no text"),
        ({"size": [2, 3], "counts": [2, 2, 2]}, "RLE counts are no text"),
        ({"size": [2, 3], "counts": "2 2"}, "RLE counts cannot be read"),
        ({"size": [2, 3], "counts": "22é"}, "RLE counts cannot be read"),
        ({"size": [2, 3], "counts": "22P"}, "RLE counts cannot be read"),
        ({"size": [2, 3], "counts": "P" * 40 + "0"}, "RLE counts cannot be read"),
        ({"size": [2, 3], "counts": "22"}, "do not add up to 6 pixels"),
        ({"size": [2, 3], "counts": "22222"}, "do not add up to 6 pixels"),
        ({"size": [2, 3], "counts": "2O5"}, "do not add up to 6 pixels"),
        ({"size": [2, 3], "counts": "2" + "o" * 11 + "02"}, "do not add up to 6 pixels"),
    ],
)
def test_bad_rle_is_named_and_never_read(bad, message):
    with pytest.raises(DataError, match=f"mask no. 2: .*{message}"):
        decode_masks([GOOD, bad, GOOD], (2, 3))
    assert find_rle_fault([GOOD, bad], (2, 3))[0] == 1
    assert find_rle_fault([GOOD, GOOD], (2, 3)) is None


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(codec="ascii", min_codepoint=1), max_size=8))
def test_any_text_is_read_or_refused(text):
    fault = find_rle_fault([{"size": [4, 5], "counts": text}], (4, 5))
    if fault is None:
        runs = decode_masks([{"size": [4, 5], "counts": text}], (4, 5))
        assert 0 <= runs.compute_areas()[0] <= 20
