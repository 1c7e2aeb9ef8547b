import contextlib
import csv
import locale
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.stats import binomtest

from cellvision.bundle import Channel
from cellvision.data.images import read_label_image
from cellvision.errors import ConfigError
from cellvision.runtime.cells import build_cells
from cellvision.runtime.files.writers import (
    ROWS_PER_STRIP,
    LabelSpool,
    ResultTables,
    StagedFiles,
    check_no_results,
    write_label_image,
)
from cellvision.runtime.maps.splitting import measure_cells
from cellvision.runtime.pictures.overlay import (
    LARGEST_OVERVIEW_PX,
    Overview,
    draw_overlay,
    format_viability,
    index_classes,
)
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.session import open_session
from stain_net import CHANNELS, draw_cells, write_bundle


def make_cells(label_image, p_live, *, pixel_size_um=0.5, kind="viability", classes=("background", "live", "dead")):
    """Cells of a label image whose pixels of label n have P(live) p_live[n - 1]."""
    live = np.concatenate([[0.0], p_live])[label_image]
    maps = np.stack([label_image == 0, live, np.where(label_image > 0, 1 - live, 0)]).astype(np.float32)
    image = np.stack([label_image * 100, label_image]).astype(np.uint16)
    return build_cells(
        measure_cells(label_image, image, maps),
        classes=classes,
        channels=("nuclei", "PI"),
        kind=kind,
        live_threshold=0.5,
        shape=label_image.shape,
        label_image=label_image,
        pixel_size_um=pixel_size_um,
    )


@pytest.fixture
def cells():
    label_image = np.zeros((40, 60), np.int32)
    label_image[3:13, 4:14] = 1
    label_image[20:26, 30:45] = 2
    label_image[30:39, 0:9] = 3
    return make_cells(label_image, [0.9, 0.2, 0.6])


@pytest.mark.parametrize("heights", [[150], [1, 64, 85], [63, 1, 1, 85], [50, 50, 50]])
def test_label_image_comes_back_whatever_the_bands(tmp_path, heights):
    labels = np.random.default_rng(0).integers(0, 300, (150, 70)).astype(np.int32)
    bands = np.split(labels, np.cumsum(heights)[:-1])
    write_label_image(tmp_path / "labels.tif", bands, shape=(150, 70), largest=300, pixel_size_um=0.25)
    np.testing.assert_array_equal(read_label_image(tmp_path / "labels.tif"), labels)
    with tifffile.TiffFile(tmp_path / "labels.tif") as tiff:
        page = tiff.pages[0]
        assert page.dtype == np.uint16
        assert page.rowsperstrip == ROWS_PER_STRIP
        assert page.compression.name == "ADOBE_DEFLATE"
        assert (page.resolutionunit.name, page.resolution) == ("CENTIMETER", (40000, 40000))


def test_many_cells_need_wider_numbers(tmp_path):
    write_label_image(tmp_path / "labels.tif", [np.array([[0, 70000]], np.int32)], shape=(1, 2), largest=70000)
    assert read_label_image(tmp_path / "labels.tif").tolist() == [[0, 70000]]
    with tifffile.TiffFile(tmp_path / "labels.tif") as tiff:
        assert tiff.pages[0].dtype == np.uint32
        assert not tiff.is_bigtiff


def test_spool_gives_back_its_rows(tmp_path):
    bands = [np.random.default_rng(i).integers(0, 9, (i, 31)).astype(np.int32) for i in (1, 7, 3)]
    with LabelSpool(tmp_path) as spool:
        for band in bands:
            spool.add(band)
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate(list(spool.iterate_rows())), np.concatenate(bands))
        assert list(tmp_path.glob("*")) == []


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "out"
    with StagedFiles(folder) as staged:
        staged.path("a.txt").write_text("a")
        staged.path("b.txt").write_text("b")
        assert [p.suffix for p in folder.iterdir()] == [".part", ".part"]
    assert sorted(p.name for p in folder.iterdir()) == ["a.txt", "b.txt"]
    with pytest.raises(KeyboardInterrupt), StagedFiles(folder) as staged:  # noqa: PT012
        staged.path("a.txt").write_text("changed")
        raise KeyboardInterrupt
    assert sorted((p.name, p.read_text()) for p in folder.iterdir()) == [("a.txt", "a"), ("b.txt", "b")]
    with pytest.raises(ZeroDivisionError), StagedFiles(tmp_path / "other") as staged:  # noqa: PT012
        staged.path("a.txt").write_text("a")
        raise ZeroDivisionError
    assert not (tmp_path / "other").exists()


def test_a_name_that_cannot_be_given_leaves_no_part(tmp_path):
    with pytest.raises(OSError), StagedFiles(tmp_path) as staged:  # noqa: PT012
        staged.path("taken").write_text("a")
        staged.path("later").write_text("b")
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_folder_in_place_of_a_file_is_named_before_any_work(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match="taken is a folder; need the name of a file"), StagedFiles(tmp_path) as files:
        files.path("taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "file is a file; need a folder; try: "),
        (
            "file/inside",
            r"cannot write to the folder .*inside \(Not a directory\); need one that can be made and written",
        ),
    ],
)
def test_a_folder_that_cannot_be_made_is_named(tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message), StagedFiles(tmp_path / name):
        pytest.fail("entered")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write, root included")
@pytest.mark.parametrize("folder", ["/proc", "/proc/x"])
def test_a_folder_that_cannot_be_written_is_named(folder):
    with pytest.raises(ConfigError, match=rf"cannot write to the folder {folder} \("), StagedFiles(Path(folder)):
        pytest.fail("entered")


@pytest.mark.parametrize("name", ["cells.csv", "fields.csv", "A1_labels.tif"])
def test_results_of_another_run_are_found(tmp_path, name):
    check_no_results(tmp_path / "missing")
    (tmp_path / "notes.txt").touch()
    check_no_results(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"holds those of another run \({name}\); need .*; try: another --out"):
        check_no_results(tmp_path)


def read_table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_tables(folder, bundle, named_cells):
    with ResultTables(folder, manifest=open_session(bundle).manifest) as tables:
        for name, cells in named_cells.items():
            tables.add(name, cells)


def test_tables_hold_every_cell_and_field(tmp_path, stain_bundle, cells):
    empty = make_cells(np.zeros((5, 5), np.int32), [], pixel_size_um=None)
    write_tables(tmp_path, stain_bundle, {'odd, "name"\n': cells, "=empty": empty})
    rows = read_table(tmp_path / "cells.csv")
    assert list(rows[0]) == [
        "image", "label", "class", "area_px", "area_um2", "centroid_y_px", "centroid_x_px", "mean_nuclei", "mean_PI",
        "p_live",
    ]  # fmt: skip
    assert [row["image"] for row in rows] == ['odd, "name"\n'] * 3
    assert [row["class"] for row in rows] == ["live", "dead", "live"]
    assert rows[0] | {"p_live": ""} == {
        "image": 'odd, "name"\n', "label": "1", "class": "live", "area_px": "100", "area_um2": "25",
        "centroid_y_px": "7.5", "centroid_x_px": "8.5", "mean_nuclei": "100", "mean_PI": "1", "p_live": "",
    }  # fmt: skip
    np.testing.assert_allclose([float(row["p_live"]) for row in rows], [0.9, 0.2, 0.6], atol=1e-6)
    fields = read_table(tmp_path / "fields.csv")
    assert [(row["cells"], row["live"], row["dead"]) for row in fields] == [("3", "2", "1"), ("0", "0", "0")]
    interval = binomtest(2, 3).proportion_ci(method="wilson")
    shares = [float(fields[0][f"{key}_percent"]) for key in ("viability", "low", "high")]
    np.testing.assert_allclose(shares, [200 / 3, 100 * interval.low, 100 * interval.high], rtol=1e-6)
    assert [fields[1][f"{key}_percent"] for key in ("viability", "low", "high")] == ["", "", ""]


def test_unknown_pixel_size_leaves_areas_empty(tmp_path, stain_bundle):
    write_tables(tmp_path, stain_bundle, {"a": make_cells(np.ones((5, 5), np.int32), [1.0], pixel_size_um=None)})
    assert read_table(tmp_path / "cells.csv")[0]["area_um2"] == ""


def test_semantic_tables_count_each_class(tmp_path, cells):
    classes = ("background", "round", "flat")
    bundle = write_bundle(tmp_path / "bundle", kind="semantic", classes=classes)
    plain = make_cells(cells.label_image, [0.9, 0.2, 0.6], kind="semantic", classes=classes)
    write_tables(tmp_path / "out", bundle, {"a": plain})
    assert read_table(tmp_path / "out" / "fields.csv") == [{"image": "a", "cells": "3", "round": "2", "flat": "1"}]
    assert "p_live" not in read_table(tmp_path / "out" / "cells.csv")[0]


def test_tables_ignore_the_locale(tmp_path, stain_bundle, cells, monkeypatch):
    # What a comma locale would do to format codes that ask the locale ("n"); such a locale is rarely installed.
    monkeypatch.setattr(locale, "localeconv", lambda: {"decimal_point": ",", "thousands_sep": ".", "grouping": [3, 0]})
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8"):
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_NUMERIC, name)
    try:
        write_tables(tmp_path, stain_bundle, {"a": cells})
    finally:
        locale.setlocale(locale.LC_NUMERIC, "C")
    text = (tmp_path / "fields.csv").read_text(encoding="utf-8")
    assert text.splitlines()[1].startswith("a,3,2,1,66.666")


def test_without_images_there_are_no_tables(tmp_path, stain_bundle):
    write_tables(tmp_path / "out", stain_bundle, {})
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_text_are_escaped(tmp_path, stain_bundle, cells):
    write_tables(tmp_path, stain_bundle, {"bad\udcff": cells})
    assert read_table(tmp_path / "cells.csv")[0]["image"] == r"bad\udcff"


def is_colour(picture, colour):
    return (picture == colour).all(axis=-1)


def test_outlines_lie_on_the_rim_in_the_colour_of_the_class(cells):
    image = np.zeros((2, 40, 60), np.uint16)
    picture = draw_overlay(image, cells, channels=CHANNELS)
    assert picture.dtype == np.uint8
    field = picture[:40, :60]
    green, magenta = is_colour(field, (0, 255, 0)), is_colour(field, (255, 0, 255))
    inner = np.zeros((40, 60), bool)
    inner[4:12, 5:13] = inner[21:25, 31:44] = inner[31:38, 0:8] = True
    np.testing.assert_array_equal(green | magenta, (cells.label_image > 0) & ~inner)
    assert (cells.label_image[magenta] == 2).all()
    assert picture[40:].any(), "the legend is empty"


def test_bands_make_the_same_picture(cells):
    image = np.random.default_rng(0).integers(0, 4000, (2, 40, 60)).astype(np.uint16)
    overview = Overview(shape=(40, 60), channels=CHANNELS)
    for top in (0, 15, 16):
        rows = slice(top, {0: 15, 15: 16, 16: 40}[top])
        overview.add_image(top, image[:, rows])
        overview.add_labels(top, cells.label_image[rows], index_classes(cells))
    np.testing.assert_array_equal(overview.render(cells), draw_overlay(image, cells, channels=CHANNELS))


def test_large_images_are_shrunk_without_losing_cells():
    shape = (40, 2 * LARGEST_OVERVIEW_PX + 1)
    label_image = np.zeros(shape, np.int32)
    label_image[10:14, -1] = label_image[10:14, 100:104] = 1
    image = np.zeros((2, *shape), np.uint16)
    image[0, :, ::2] = 1000
    cells = make_cells(label_image, [0.9])
    overview = Overview(shape=shape, channels=CHANNELS)
    for top in (0, 7, 25):
        rows = slice(top, {0: 7, 7: 25, 25: 40}[top])
        overview.add_image(top, image[:, rows])
        overview.add_labels(top, label_image[rows], index_classes(cells))
    picture = overview.render(cells)
    assert overview.step == 3
    assert picture.shape[1] == 2001
    green = is_colour(picture[:14], (0, 255, 0))
    assert green.any(axis=0)[[33, 34, 2000]].all()
    assert green.sum() == 2 * 2 + 2
    np.testing.assert_array_equal(picture[:13], draw_overlay(image, cells, channels=CHANNELS)[:13])


def test_picture_of_one_pixel_has_a_readable_legend():
    picture = draw_overlay(
        np.full((1, 1, 1), 7, np.uint8), make_cells(np.zeros((1, 1), np.int32), []), channels=(Channel(name="grey"),)
    )
    assert picture.shape[1] > 100
    assert picture[1:].max() == 255


def test_viability_in_words(cells):
    assert format_viability(cells) == "viability 66.7 % (20.8 to 93.9)"
    assert format_viability(make_cells(np.zeros((2, 2), np.int32), [])) == "viability undefined (no cells)"


def test_overlay_of_a_real_prediction_is_a_png(tmp_path, stain_bundle):
    image = draw_cells((60, 60), [(20, 20), (45, 40)], 10, dead={1})
    picture = draw_overlay(image, Predictor(stain_bundle)(image), channels=CHANNELS)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert is_colour(picture[:60, :60], (0, 255, 0)).sum() > 30
    assert is_colour(picture[:60, :60], (255, 0, 255)).sum() > 30
