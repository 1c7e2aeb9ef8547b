"""The benchmark of large images sees what it looks for, and makes images whose truth it knows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.errors import DataError
from cellvision.metrics.matching import match_cells

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from big_image_cells import build_scene, write_scene
from big_image_seams import (
    average,
    compute_rate,
    count_errors,
    find_lines,
    judge,
    keep_away,
    measure_overlaps,
    shift_lines,
)

FIELDS = SyntheticLiveDead(fields=2, height=300, width=300, cells=(30, 30))


@pytest.fixture(scope="module")
def scene():
    return build_scene(FIELDS, ["pi", "hoechst"], size=700, cells=150, seed=3)


@pytest.fixture(scope="module")
def truth(scene):
    return scene.draw_labels(0, 700)


@pytest.fixture(scope="module")
def lines():
    return find_lines((700, 700), tile_px=128, overlap_px=32)


def test_lines(lines):
    assert {name: some.down.tolist() for name, some in lines.items()} == {
        "tile borders": [160, 288, 416, 544],
        "window borders": [128, 192, 256, 320, 384, 448, 512, 576],
    }


def test_moved_lines_are_far_from_all(lines):
    moved = list(shift_lines(lines, "tile borders", shape=(700, 700), tile_px=128))
    assert [some.down[0] - 160 for some in moved] == [60, 70]  # 92 and 102 are 20 px and more from 0, 32, 64 and 128


def test_lines_near_those_of_other_tiles_are_left_out(lines):
    others = list(find_lines((700, 700), tile_px=200, overlap_px=30).values())  # at 200, 230, 260, 400, 430, ..
    kept = {name: keep_away(some, others) for name, some in lines.items()}
    assert kept["tile borders"].down.tolist() == kept["tile borders"].across.tolist() == [160, 288, 544]
    assert kept["window borders"].down.tolist() == [128, 320, 512, 576]


def test_an_image_has_the_cells_that_it_says(scene, truth):
    assert truth.max() == scene.cells >= 150
    assert len(np.unique(truth)) == scene.cells + 1
    areas = {np.count_nonzero(cut.labels == label) for cut in scene.cut_outs for label in range(1, cut.count + 1)}
    assert set(np.bincount(truth.ravel())[1:]) <= areas  # no cell lies on another, none is cut


def test_a_band_is_drawn_the_same_wherever_it_begins(scene, truth):
    assert np.array_equal(np.concatenate([scene.draw_labels(0, 90), scene.draw_labels(90, 700)]), truth)


def test_cells_are_where_the_light_is(scene, truth):
    nuclei = scene.draw_plane(1, 0, 700).astype(float)
    assert nuclei[truth > 0].mean() > 1.5 * nuclei[truth == 0].mean()


def test_files(scene, truth, tmp_path):
    write_scene(scene, tmp_path / "a.tif", tmp_path / "b.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), truth)
    image = tifffile.imread(tmp_path / "a.tif")
    assert image.dtype == np.uint16
    assert np.array_equal(image[1, :512], scene.draw_plane(1, 0, 512))


@pytest.mark.parametrize(
    ("channels", "cells", "message"),
    [(["grey"], 30, "fields without the channels grey"), (["pi"], 0, "2 fields in which no cell lies free")],
)
def test_what_cannot_be_cut_out_is_said(channels, cells, message):
    fields = SyntheticLiveDead(fields=2, height=64, width=64, cells=(cells, cells))
    with pytest.raises(DataError, match=message):
        build_scene(fields, channels, size=400, cells=10, seed=0)


def test_the_truth_has_no_error(truth, lines):
    rng = np.random.default_rng(0)
    pred = np.append(0, 1 + rng.permutation(truth.max()))[truth]
    verdicts = judge(measure_overlaps(truth, pred))
    for some in (None, *lines.values()):
        found = count_errors(verdicts, some)
        assert found["F1"] == found["IoU"] == 1
        assert sum(found[error] for error in ("missed", "extra", "doubled", "cut")) == 0


def test_boxes_and_areas_are_those_of_scipy(truth):
    overlaps = measure_overlaps(truth, truth)
    boxes = [[b[0].start, b[1].start, b[0].stop, b[1].stop] for b in ndimage.find_objects(truth)]
    assert overlaps.true_boxes[1:].tolist() == boxes
    assert np.array_equal(overlaps.true_area[1:], np.bincount(truth.ravel())[1:])


def test_cells_doubled_along_borders_are_all_seen(truth, lines):
    pred = truth + truth.max() * (truth > 0) * number_tiles(truth, lines)
    pred = np.unique(pred, return_inverse=True)[1].reshape(truth.shape)
    verdicts = judge(measure_overlaps(truth, pred))
    parts = np.array([len(np.unique(pred[truth == label])) for label in range(1, truth.max() + 1)])
    assert np.array_equal(verdicts.doubled[1:], parts > 1)
    found = count_errors(verdicts, lines["tile borders"])
    assert found["doubled"] == np.count_nonzero(parts > 1) > 20
    moved = shift_lines(lines, "tile borders", shape=(700, 700), tile_px=128)
    elsewhere = average([count_errors(verdicts, some) for some in moved])
    assert elsewhere["doubled"] < compute_rate(found, "doubled") / 3
    matches = match_cells(pred, truth)
    everywhere = count_errors(verdicts, None)
    assert (everywhere["missed"], everywhere["extra"]) == (len(matches.missed_ids), len(matches.extra_ids))


def test_cells_cut_at_borders_are_seen(truth, lines):
    tiles, pred = number_tiles(truth, lines), truth.copy()
    for label in range(1, truth.max() + 1):
        own = truth == label
        pred[own & (tiles > tiles[own].min())] = 0
    lost = 1 - np.bincount(pred.ravel(), minlength=truth.max() + 1)[1:] / np.bincount(truth.ravel())[1:]
    verdicts = judge(measure_overlaps(truth, pred))
    is_cut = verdicts.find_cut(lines["tile borders"])[1:]
    assert is_cut[lost > 0.3].all()
    assert not is_cut[lost == 0].any()
    for some in shift_lines(lines, "tile borders", shape=(700, 700), tile_px=128):
        assert verdicts.find_cut(some).sum() <= 1


def number_tiles(truth, lines):
    borders = lines["tile borders"]
    rows, columns = (np.searchsorted(places, np.arange(700), "right") for places in (borders.down, borders.across))
    return rows[:, None] * 10 + columns
