import csv
from dataclasses import replace

import numpy as np
import pytest
from skimage.measure import regionprops

from cellvision.bundle import Channel, Splitting, load_manifest
from cellvision.errors import BundleError
from cellvision.runtime.cells import tells_viability, to_class_map
from cellvision.runtime.detections.cells import build_detected_cells
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.files.writers import ResultTables
from cellvision.runtime.pictures.overlay import draw_overlay
from dot_net import write_dot_bundle

LIVE_DEAD = ("background", "live", "dead")
SPLITTING = Splitting(method="instances", score_threshold=0.3, min_area_px=4)


@pytest.fixture
def detections():
    """Right, worse and over it by 3 columns; left, better; nearly the left one again, as dead; too weak."""
    boxes = [[9, 3, 19, 13], [2, 3, 12, 13], [3, 3, 13, 13], [20, 20, 26, 26]]
    return Detections(
        boxes=np.array(boxes, np.float32),
        scores=np.array([0.6, 0.95, 0.9, 0.9], np.float32),
        mask_scores=np.array([0.5, 1.3, 0.8, 0.1], np.float32),
        class_id=np.array([2, 1, 2, 1]),
        class_scores=np.array([[0.2, 0.6], [0.95, 0.05], [0.1, 0.9], [0.9, 0.1]], np.float32),
        masks=np.ones((4, 28, 28), np.float32),
    )


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 4000, (2, 30, 40)).astype(np.uint16)


def build(detections, image, **options):
    options = {"splitting": SPLITTING, "classes": LIVE_DEAD, "channels": ("nuclei", "PI")} | options
    return build_detected_cells(detections, image, **options)


def test_the_best_come_first_and_keep_their_pixels(detections, image):
    cells = build(detections, image, pixel_size_um=0.5)
    expected = np.zeros((30, 40), np.int32)
    expected[3:13, 2:12] = 1
    expected[3:13, 12:19] = 2
    np.testing.assert_array_equal(cells.label_image, expected)
    assert cells.label.tolist() == [1, 2]
    assert cells.class_id.tolist() == [1, 2]
    assert cells.score.tolist() == pytest.approx([1.0, 0.5])
    assert cells.score.dtype == np.float64
    assert cells.kind == "instance"
    np.testing.assert_allclose(cells.area_um2, [25, 17.5])


def test_visible_pixels_are_measured(detections, image):
    cells = build(detections, image)
    regions = regionprops(cells.label_image, np.moveaxis(image, 0, -1).astype(np.float64))
    assert cells.area_px.tolist() == [r.area for r in regions] == [100, 70]
    np.testing.assert_array_equal(cells.bbox, [r.bbox for r in regions])
    np.testing.assert_allclose(cells.mean_intensity, [r.intensity_mean for r in regions])
    centroids = np.stack([cells.centroid_y_px, cells.centroid_x_px], axis=1)
    np.testing.assert_allclose(centroids, [r.centroid for r in regions])


def test_class_scores_become_probabilities(detections, image):
    silent = replace(detections, class_scores=detections.class_scores * np.float32([[1], [0], [1], [1]]))
    np.testing.assert_allclose(build(detections, image).probabilities, [[0.95, 0.05], [0.25, 0.75]], rtol=1e-6)
    cells = build(silent, image)
    np.testing.assert_allclose(cells.probabilities, [[1, 0], [0.25, 0.75]], rtol=1e-6)
    np.testing.assert_array_equal(cells.p_live, cells.probabilities[:, 0])


def test_a_threshold_on_p_live_overrules_the_class(detections, image):
    assert build(detections, image, live_threshold=0.2).class_id.tolist() == [1, 1]
    assert build(detections, image, live_threshold=0.96).class_id.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("change", "cells"),
    [
        ({"score_threshold": 0.05}, 3),
        ({"score_threshold": 0.6}, 1),
        ({"min_area_px": 71}, 1),
        ({"min_visible": 0.71}, 1),
        ({"min_visible": 0.05}, 3),
    ],
)
def test_splitting_decides_what_counts(detections, image, change, cells):
    assert len(build(detections, image, splitting=replace(SPLITTING, **change))) == cells


def test_mask_threshold_is_that_of_the_foreground(detections, image):
    faint = replace(detections, masks=detections.masks * np.float32(0.4))
    assert len(build(faint, image)) == 0
    assert len(build(faint, image, splitting=replace(SPLITTING, foreground_threshold=0.4))) == 2


def test_class_map_has_the_class_of_the_best(detections, image):
    expected = np.zeros((30, 40), np.uint8)
    expected[3:13, 2:12] = 1
    expected[3:13, 12:19] = 2
    class_map = to_class_map(build(detections, image))
    np.testing.assert_array_equal(class_map, expected)
    assert class_map.dtype == np.uint8


def test_live_and_dead_cells_have_a_viability(detections, image):
    cells = build(detections, image)
    assert (cells.viability().live, cells.viability().dead) == (1, 1)
    plain = build(detections, image, classes=("background", "round", "flat"))
    assert plain.p_live is None
    assert "p_live" not in next(plain.to_rows())
    with pytest.raises(BundleError, match="cells of the classes round, flat; need a viability bundle"):
        plain.viability()


def test_kinds_that_count_live_and_dead():
    assert tells_viability("viability", LIVE_DEAD)
    assert tells_viability("instance", ("background", "dead", "live"))
    assert not tells_viability("instance", (*LIVE_DEAD, "debris"))
    assert not tells_viability("semantic", LIVE_DEAD)


def test_scores_go_where_their_cells_go(detections, image):
    cells = build(detections, image)
    weak = cells.filter(cells.score < 0.9)
    assert weak.score.tolist() == [0.5]
    assert weak.label.tolist() == [2]
    assert [row["score"] for row in cells.to_rows()] == [1.0, 0.5]
    assert "score" not in next(replace(cells, score=None).to_rows())
    assert len(replace(cells, score=None).filter(cells.score < 0.9)) == 1


def read_table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_tables_have_a_column_for_the_score(detections, image, tmp_path):
    channels = (Channel(name="nuclei", role="nuclear"), Channel(name="PI", role="dead"))
    manifest = load_manifest(write_dot_bundle(tmp_path / "bundle", channels=channels))
    with ResultTables(tmp_path, manifest=manifest) as tables:
        tables.add("a", build(detections, image))
        tables.add("truth", replace(build(detections, image), score=None))
    rows = read_table(tmp_path / "cells.csv")
    assert [row["score"] for row in rows] == ["1", "0.5", "", ""]
    np.testing.assert_allclose([float(row["p_live"]) for row in rows[:2]], [0.95, 0.25], rtol=1e-6)
    assert read_table(tmp_path / "fields.csv")[0]["viability_percent"] == "50"


def test_nothing_found_is_a_record_without_rows(detections, image):
    cells = build(detections.take(np.zeros(4, bool)), image)
    assert len(cells) == 0
    assert cells.probabilities.shape == (0, 2)
    assert cells.score.shape == (0,)
    assert cells.mean_intensity.shape == (0, 2)
    assert not to_class_map(cells).any()
    channels = (Channel(name="nuclei", role="nuclear"), Channel(name="PI", role="dead"))
    assert draw_overlay(image, cells, channels=channels).shape[1] >= 40
