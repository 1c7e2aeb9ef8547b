import numpy as np
import pytest

from cellvision.errors import ConfigError, DataError
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.painted_field import paint_field
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.masks import encode_detections, paint_detections
from crowded_fields import draw_coco, to_fields

SHAPE = (60, 80)


def draw_detections(rng, count=60):
    corners = rng.uniform(-5, 70, (count, 2))
    score = rng.choice(np.linspace(0.05, 0.95, 12), count).astype(np.float32)
    return Detections(
        boxes=np.concatenate([corners, corners + rng.uniform(1, 25, (count, 2))], axis=1).astype(np.float32),
        scores=score,
        mask_scores=None,
        class_id=rng.integers(1, 3, count),
        class_scores=np.stack([score, 1 - score], axis=1),
        masks=rng.uniform(0.2, 1, (count, 7, 7)).astype(np.float32),
    )


def to_field(detections):
    return InstanceField.from_rles(
        encode_detections(detections, shape=SHAPE),
        shape=SHAPE,
        class_id=detections.class_id,
        score=detections.rank_scores,
    )


@pytest.mark.parametrize(("min_visible", "min_area_px"), [(0.5, 1), (0.0, 1), (1.0, 1), (0.3, 20)])
@pytest.mark.parametrize("least", [0.0, 0.5])
def test_it_paints_as_the_runtime_does_at_every_threshold(min_visible, min_area_px, least):
    rng = np.random.default_rng(0)
    for _ in range(5):
        detections = draw_detections(rng)
        label_image, kept = paint_detections(
            detections, shape=SHAPE, score_threshold=least, min_visible=min_visible, min_area_px=min_area_px
        )
        classes, score = detections.class_id[kept], detections.rank_scores[kept].astype(np.float64)
        expected = InstanceField.from_label_image(label_image, classes, score=score)
        painted = paint_field(to_field(detections), min_visible=min_visible, min_area_px=min_area_px)
        shown = painted.score >= np.float32(least)
        assert 0 < shown.sum() < len(detections)
        assert [rle for rle, one in zip(painted.rles, shown, strict=True) if one] == list(expected.rles)
        assert painted.class_id[shown].tolist() == expected.class_id.tolist()
        assert painted.score[shown].tolist() == expected.score.tolist()


def test_no_pixel_is_in_two_cells_and_none_is_new():
    for pred, _ in to_fields(*draw_coco(3)):
        painted = paint_field(pred, min_visible=0)
        assert painted.areas.sum() <= pred.shape[0] * pred.shape[1]
        assert painted.areas.sum() <= pred.areas.sum()
        again = paint_field(painted)
        assert again.rles == painted.rles


def test_the_class_as_a_cell_goes_before_that_of_the_prediction():
    rles = [{"size": [2, 2], "counts": "22"}]
    field = InstanceField.from_rles(
        rles, shape=(2, 2), class_id=np.array([1]), score=np.array([0.5]), cell_class=np.array([2])
    )
    assert paint_field(field).class_id.tolist() == [2]


def test_misfits_are_refused():
    field = to_field(draw_detections(np.random.default_rng(1)))
    with pytest.raises(ConfigError, match=r"min_visible=1.5; need a share from 0 to 1; try: "):
        paint_field(field, min_visible=1.5)
    with pytest.raises(ConfigError, match=r"min_area_px=0; need a whole number from 1 up; try: "):
        paint_field(field, min_area_px=0)
    truth = InstanceField.from_label_image(np.ones((2, 2), int), np.array([1]))
    with pytest.raises(DataError, match="predicted cells without scores; need one per cell"):
        paint_field(truth)
