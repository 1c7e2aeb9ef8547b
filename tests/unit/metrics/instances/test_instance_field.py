from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cellvision.errors import DataError, ShapeError
from cellvision.metrics.instances.field import InstanceField
from cellvision.runtime.cells import Cells
from cellvision.types import IGNORE
from crowded_fields import draw_label_images

# pycocotools decodes with a method of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_a_label_image_with_gaps():
    image = draw_label_images(0)[1]
    labels = np.unique(image)[1:]
    classes = np.where(np.arange(1, 30) % 7 == 0, IGNORE, 1 + np.arange(1, 30) % 2)
    field = InstanceField.from_label_image(image, classes, score=np.arange(1, 30) / 30)
    assert len(field) == labels.size < labels.max()
    assert field.class_id.tolist() == classes[labels - 1].tolist()
    assert field.score.tolist() == (labels / 30).tolist()
    assert field.ignored.tolist() == (labels % 7 == 0).tolist()
    decoded = coco_mask.decode([dict(rle) for rle in field.rles])
    assert (decoded == (image[..., None] == labels)).all()
    assert field.areas.tolist() == decoded.sum(axis=(0, 1)).tolist()


def make_cells(label_image, *, score=None):
    labels = np.unique(label_image)[1:]
    count, column = labels.size, np.zeros(labels.size)
    return Cells(
        shape=label_image.shape, classes=("background", "live", "dead"), channels=(), kind="semantic",
        pixel_size_um=None, label=labels.astype(np.int32), class_id=1 + labels.astype(np.int64) % 2,
        area_px=column.astype(np.int64), centroid_y_px=column, centroid_x_px=column, score=score,
        bbox=np.zeros((count, 4), np.int64), mean_intensity=np.zeros((count, 0)), probabilities=np.ones((count, 2)) / 2,
        label_image=label_image,
    )  # fmt: skip


def test_found_cells():
    image = draw_label_images(1)[0]
    labels = np.unique(image)[1:]
    without = InstanceField.from_cells(make_cells(image))
    assert without.score.tolist() == [1.0] * labels.size
    score = np.linspace(0, 1, labels.size)
    field = InstanceField.from_cells(make_cells(image, score=score))
    assert field.score.tolist() == score.tolist()
    assert field.class_id.tolist() == (1 + labels % 2).tolist()
    assert not field.ignored.any()
    assert (coco_mask.decode([dict(rle) for rle in field.rles]) == (image[..., None] == labels)).all()
    with pytest.raises(DataError, match="cells without their label image"):
        InstanceField.from_cells(replace(make_cells(image), label_image=None))


def test_no_cells():
    field = InstanceField.from_label_image(np.zeros((4, 5), int), np.zeros(0, int), score=np.zeros(0))
    assert (len(field), field.boxes.shape, field.score.shape) == (0, (0, 4), (0,))
    assert len(InstanceField.from_rles([], shape=(4, 5), class_id=np.zeros(0, int))) == 0


def test_boxes_and_areas_that_are_given_and_those_that_are_not():
    image = np.array([[1, 1, 0, 2]])
    rles = InstanceField.from_label_image(image, np.array([1, 1])).rles
    boxes, areas = np.array([[0, 0, 1.5, 1], [np.nan] * 4]), np.array([np.nan, 7])
    field = InstanceField.from_rles(rles, shape=(1, 4), class_id=np.ones(2, int), boxes=boxes, areas=areas)
    assert field.boxes.tolist() == [[0, 0, 1.5, 1], [3, 0, 4, 1]]
    assert field.areas.tolist() == [2, 7]


def test_misfits_are_refused():
    image = np.array([[1, 0, 2]])
    with pytest.raises(ShapeError, match=r"label 2 but classes of shape \(1,\); need one per label"):
        InstanceField.from_label_image(image, np.array([1]))
    with pytest.raises(ShapeError, match=r"label 2 but scores of shape \(1,\)"):
        InstanceField.from_label_image(image, np.array([1, 1]), score=np.array([1.0]))
    rles = InstanceField.from_label_image(image, np.array([1, 1])).rles
    with pytest.raises(ShapeError, match=r"2 masks with class_id \(1,\), boxes \(1, 4\); need one row"):
        InstanceField.from_rles(rles, shape=(1, 3), class_id=np.array([1]), boxes=np.zeros((1, 4)))
    with pytest.raises(DataError, match="a box_score of nan; need finite numbers"):
        InstanceField.from_rles(
            rles, shape=(1, 3), class_id=np.array([1, 1]), score=np.ones(2), box_score=np.array([1, np.nan])
        )
    with pytest.raises(DataError, match="class 255 that are not ignored"):
        InstanceField.from_rles(rles, shape=(1, 3), class_id=np.array([1, IGNORE]))
