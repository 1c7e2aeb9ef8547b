"""Oracle: pycocotools encodes and decodes the same masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from scipy import ndimage

from cellvision.data.coco.outlines import encode_cells, trace_polygons

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools with NumPy 2


def draw_mask(seed):
    """Ragged or smooth, at any place of a field, often along its border."""
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 14, 2)) < rng.uniform(0.2, 0.95)
    if seed % 2:
        mask = ndimage.gaussian_filter(mask.astype(float), 1) > 0.5
    place = [int(rng.integers(0, spare + 1)) for spare in (20 - mask.shape[0], 25 - mask.shape[1])]
    field = np.zeros((20, 25), np.int32)
    field[place[0] : place[0] + mask.shape[0], place[1] : place[1] + mask.shape[1]] = mask
    return mask, field, place


@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_label_images_are_encoded_as_pycocotools_does(seed):
    rng = np.random.default_rng(seed)
    field = rng.choice([0, 0, 3, 4, 90], size=rng.integers(1, 12, 2)).astype(np.int32)
    labels, rles = encode_cells(field)
    assert labels.tolist() == [label for label in np.unique(field).tolist() if label]
    for label, rle in zip(labels, rles, strict=True):
        expected = coco_mask.encode(np.asfortranarray(field == label, dtype=np.uint8))
        assert rle == {"size": list(field.shape), "counts": expected["counts"].decode()}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_polygons_give_the_mask_back_unless_it_has_a_hole(seed):
    mask, field, (top, left) = draw_mask(seed)
    if not mask.any():
        return
    polygons = trace_polygons(mask, top=top, left=left, rle=encode_cells(field)[1][0])
    # Behind a ring that is closed by corners only, background can still get out.
    has_hole = ndimage.label(~np.pad(mask, 1), structure=np.ones((3, 3)))[1] > 1
    assert (polygons is None) == has_hole
    if polygons is not None:
        decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 20, 25)))
        np.testing.assert_array_equal(decoded, field)
        assert len(polygons) == ndimage.label(mask)[1]


def test_outlines_have_corners_only():
    mask = np.array([[1, 1, 1], [1, 0, 0]], bool)
    rle = encode_cells(np.pad(mask.astype(np.int32), 1))[1][0]
    (polygon,) = trace_polygons(mask, top=1, left=1, rle=rle)
    points = {tuple(point) for point in np.reshape(polygon, (-1, 2)).tolist()}
    assert points == {(1, 1), (4, 1), (4, 2), (2, 2), (2, 3), (1, 3)}
