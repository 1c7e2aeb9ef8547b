import csv
import dataclasses
import itertools

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellvision.bundle import Detecting, Splitting
from cellvision.data.images import read_label_image
from cellvision.errors import BundleError, ConfigError, DataError
from cellvision.runtime.detections.cells import build_detected_cells
from cellvision.runtime.files.writers import ResultTables
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.session import open_session
from damaged_file import write_damaged
from dot_net import CHANNELS, build_whole, draw_dots, write_dot_bundle

MANY = Detecting(nms_iou=0.6, max_cells=600)
SPLITTING = Splitting(method="instances", score_threshold=0.05, min_area_px=5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Boxes end at the window's sides, as those of a real net do: a cell at a side is seen as a piece."""
    graph = build_whole(detecting=MANY, clip=True)
    return write_dot_bundle(tmp_path_factory.mktemp("clipped") / "b", graph, detecting=MANY)


@pytest.fixture(scope="module")
def untiled(bundle):
    return Predictor(bundle, tile_px=4096, threads=1)


def check_equal(tiled, whole):
    """The same cells with the same pixels and numbers."""
    assert len(tiled) == len(whole)
    np.testing.assert_array_equal(tiled.label_image, whole.label_image)
    for field in dataclasses.fields(whole):
        if isinstance(value := getattr(whole, field.name), np.ndarray):
            np.testing.assert_allclose(getattr(tiled, field.name), value, rtol=1e-9, err_msg=field.name)


def scatter(shape, count, *, largest, seed=0):
    """Cells anywhere, over each other too, and no two with one score."""
    rng = np.random.default_rng(seed)
    at = rng.choice(shape[0] * shape[1], count, replace=False)
    scores = rng.permutation(np.linspace(0.06, 1, count))
    radii = rng.integers(6, largest + 1, count) / 2
    centres = np.stack(np.divmod(at, shape[1]), axis=1)
    return draw_dots(shape, centres, radii, dead=set(range(0, count, 3)), scores=scores)


@pytest.mark.parametrize("parted", [False, True])
def test_one_tile_gives_what_the_session_finds(tmp_path, parted):
    bundle = write_dot_bundle(tmp_path / "b", parted=parted)
    image = scatter((90, 80), 50, largest=20)
    expected = build_detected_cells(
        open_session(bundle).run(image), image, splitting=SPLITTING, classes=("background", "live", "dead"),
        channels=tuple(channel.name for channel in CHANNELS), live_threshold=0.5, pixel_size_um=0.25,
    )  # fmt: skip
    cells = Predictor(bundle, tile_px=128)(image, pixel_size_um=0.25)
    assert len(cells) > 15
    assert cells.tiles == 1
    assert cells.kind == "instance"
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(cells, field.name), getattr(expected, field.name), err_msg=field.name)


@pytest.mark.parametrize(
    ("tile_px", "overlap_px", "batch"), [(64, 32, 1), (64, 32, 3), (40, 24, 1), (128, 48, 2), (24, 56, 5), (200, 24, 1)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_tiles_change_nothing(bundle, untiled, tile_px, overlap_px, batch, seed):
    """Cells up to overlap_px long, in any number over each other."""
    image = scatter((230, 310), 500, largest=overlap_px - 4, seed=seed)
    whole = untiled(image)
    tiled = Predictor(bundle, tile_px=tile_px, overlap_px=overlap_px, batch=batch, threads=1)(image)
    assert whole.tiles == 1
    assert tiled.tiles > 1
    assert len(whole) > 100
    check_equal(tiled, whole)


@pytest.mark.parametrize("parted", [False, True])
def test_cells_around_the_corners_of_four_tiles(tmp_path, parted):
    bundle = write_dot_bundle(tmp_path / "b", parted=parted, detecting=MANY)
    predictors = [Predictor(bundle, tile_px=px, overlap_px=24, threads=1) for px in (4096, 48)]
    corners = [(y, x) for y in (72, 120, 168) for x in (72, 120, 168)]
    for dy, dx in itertools.product((-13, -12, -1, 0, 1, 11, 12), repeat=2):
        image = draw_dots((240, 240), [(y + dy, x + dx) for y, x in corners], 11)
        whole, tiled = (predictor(image) for predictor in predictors)
        assert len(whole) == len(corners)
        assert tiled.tiles == 16
        check_equal(tiled, whole)


def test_cells_up_to_twice_the_overlap_are_whole(bundle, untiled):
    """Each is cut in some window, but not in that of the tile its middle lies in."""
    centres = [(y, x) for y in range(40, 300, 72) for x in range(35, 380, 71)]
    image = draw_dots((300, 400), centres, 29)  # 58 px long, overlap 32
    tiled = Predictor(bundle, tile_px=64, overlap_px=32, threads=1)(image)
    assert len(tiled) == len(centres)
    check_equal(tiled, untiled(image))


def test_cells_longer_than_that_are_found_in_pieces(bundle, untiled):
    """What a tile cannot show, no rule can join: the cells are there, but cut, which is why overlap_px is as it is."""
    image = draw_dots((300, 300), [(150, 150), (40, 40)], [110, 15])
    assert len(untiled(image)) == 2
    tiled = Predictor(bundle, tile_px=48, overlap_px=16, threads=1)(image)
    assert len(tiled) >= 2
    small = tiled.label_image[40, 40]
    assert tiled.area_px[tiled.label == small] == untiled(image).area_px[1]
    assert tiled.label_image[150, 150] > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (31, 2), (150, 170)])
def test_images_without_cells(bundle, shape):
    cells = Predictor(bundle, tile_px=64, overlap_px=32)(np.zeros((3, *shape), np.uint16))
    assert len(cells) == 0
    assert cells.label_image.shape == shape
    assert cells.label_image.dtype == np.int32
    assert cells.mean_intensity.shape == (0, 3)
    assert cells.viability().viability is None
    assert list(cells.to_rows()) == []


def test_classes_of_live_and_dead_follow_the_threshold(tmp_path):
    image = draw_dots((40, 80), [(20, 20), (20, 60)], 9, dead={1})
    for folder, threshold in (("low", 0.4), ("high", 0.6)):
        cells = Predictor(write_dot_bundle(tmp_path / folder, live_threshold=threshold))(image)
        assert [row["class"] for row in cells.to_rows()] == ["live", "dead"]
        assert cells.p_live.tolist() == [1, 0]
        assert (cells.viability().live, cells.viability().dead) == (1, 1)
    plain = Predictor(write_dot_bundle(tmp_path / "plain", classes=("background", "round", "flat")))(image)
    assert [row["class"] for row in plain.to_rows()] == ["round", "flat"]
    assert plain.p_live is None


def test_progress_counts_tiles(bundle):
    seen = []
    predictor = Predictor(bundle, tile_px=64, overlap_px=32)
    predictor(np.zeros((3, 150, 200), np.uint16), progress=lambda *tiles: seen.append(tiles))
    assert seen == [(i + 1, 6) for i in range(6)]


def test_every_detection_once(bundle, untiled):
    """Also those whose pixels others have, and of any score: what average precision is computed from."""
    image = scatter((200, 260), 500, largest=28)
    whole = untiled.detect(image)
    tiled = Predictor(bundle, tile_px=48, overlap_px=32, threads=1).detect(image)
    # A tile's own suppression lies inside the graph; this net has none, and two of its cells may lie over each other.
    rows = [{tuple(np.round(box, 3)) for box in found.boxes} for found in (whole, tiled)]
    assert len(whole) == 500
    assert len(rows[0] - rows[1]) <= 5
    assert rows[1] <= rows[0]
    assert len(tiled) == len(rows[1])


def test_what_each_kind_of_bundle_can_give(bundle, stain_bundle):
    with pytest.raises(
        BundleError, match="probabilities of pixels of a bundle of kind instance; need a bundle of kind"
    ):
        Predictor(bundle).predict_with_probabilities(np.zeros((3, 9, 9), np.uint16))
    with pytest.raises(BundleError, match="detections of a bundle of kind viability; need a bundle of kind instance"):
        Predictor(stain_bundle).detect(np.zeros((2, 9, 9), np.uint16))


@pytest.fixture
def picture(tmp_path):
    image = scatter((220, 180), 200, largest=24)
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(
        folder / "field.ome.tif",
        image[::-1],
        photometric="minisblack",
        metadata={
            "axes": "CYX",
            "Channel": {"Name": [channel.name for channel in CHANNELS[::-1]]},
            "PhysicalSizeX": 0.25,
            "PhysicalSizeY": 0.25,
        },
    )
    return folder / "field.ome.tif", image


@pytest.mark.parametrize("tile_px", [64, 4096])
def test_files_hold_what_the_array_gives(bundle, untiled, picture, tmp_path, tile_px):
    path, image = picture
    predictor = Predictor(bundle, tile_px=tile_px, overlap_px=32)
    with ResultTables(tmp_path / "out", manifest=predictor.manifest) as tables:
        streamed = predictor.predict_to_folder(path, tmp_path / "out")
        tables.add("field", streamed)
    expected = untiled(image, pixel_size_um=0.25)
    assert streamed.label_image is None
    names = ["cells.csv", "field_labels.tif", "field_overlay.png", "fields.csv"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    labels = read_label_image(tmp_path / "out" / "field_labels.tif")
    check_equal(dataclasses.replace(streamed, label_image=labels), expected)
    with (tmp_path / "out" / "cells.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected.score, rtol=1e-6)
    assert [row["class"] for row in rows] == [expected.classes[i] for i in expected.class_id]
    overlay = np.asarray(Image.open(tmp_path / "out" / "field_overlay.png"))
    green = (overlay[:220, :180] == (0, 255, 0)).all(axis=-1)
    assert green.sum() > 200
    assert np.isin(labels[green], expected.label[expected.class_id == 1]).all()


def test_no_overlay_where_none_is_wanted(bundle, picture, tmp_path):
    Predictor(bundle).predict_to_folder(picture[0], tmp_path / "out", name="a", overlay=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_labels.tif"]


def test_a_failure_half_way_leaves_nothing(bundle, picture, tmp_path):
    path, image = picture
    write_damaged(path, image)
    seen = []
    with pytest.raises(DataError, match=r"field\.ome\.tif"):
        Predictor(bundle, tile_px=64, overlap_px=32).predict_to_folder(
            path, tmp_path / "out", progress=lambda *tiles: seen.append(tiles)
        )
    assert seen
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_refused_before_the_work(bundle):
    with pytest.raises(ConfigError, match=r"an image of 900x900 px takes .* need at most memory_mib=10"):
        Predictor(bundle, memory_mib=10)(np.zeros((3, 900, 900), np.uint16))


@pytest.mark.parametrize("parted", [False, True])
def test_a_window_can_hold_thousands_of_cells(tmp_path, parted):
    """1,500 of 6 px in one window, of which none overlaps another by more than suppression allows."""
    detecting = Detecting(nms_iou=0.6, max_cells=3000)
    bundle = write_dot_bundle(tmp_path / "b", parted=parted, detecting=detecting, tile_px=512)
    places = np.random.default_rng(0).permutation(42 * 42)[:1500]
    image = draw_dots((300, 300), 5 + 7 * np.stack(np.divmod(places, 42), axis=1), 3)
    cells = Predictor(bundle, memory_mib=4096)(image)
    assert (cells.tiles, cells.notes) == (1, ())
    assert len(cells) == len(np.unique(cells.label_image)) - 1 == 1500
    fewer = write_dot_bundle(
        tmp_path / "c", parted=parted, detecting=dataclasses.replace(detecting, max_cells=900), tile_px=512
    )
    assert len(Predictor(fewer, memory_mib=4096)(image)) == 900


@pytest.mark.parametrize("parted", [False, True])
def test_tiles_with_as_many_cells_as_there_are_places_are_noted(tmp_path, parted):
    few = Detecting(nms_iou=0.6, max_cells=4)
    predictor = Predictor(write_dot_bundle(tmp_path / "b", parted=parted, detecting=few), tile_px=64, overlap_px=16)
    centres = [(12, 12), (12, 40), (40, 12), (40, 40), (66, 60)]
    note = (
        "1 of 1 tiles of 64 px hold 4 cells, as many as the bundle finds in one; if there are more, a smaller tile_px "
        "finds them, or a bundle of export.py with max_cells=8"
    )
    image = draw_dots((80, 80), centres, 8)
    assert predictor(image).notes == (note,)
    assert len(predictor(image)) == 4
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    assert predictor.predict_to_folder(tmp_path / "a.tif", tmp_path / "out").notes == (note,)
    assert predictor(draw_dots((80, 80), centres[:3], 8)).notes == ()
    # The worst of those with a place is no cell, so no worse one can be.
    unsure = draw_dots((80, 80), centres, 8, scores=[1, 0.9, 0.8, 0.02, 0.01])
    assert predictor(unsure).notes == ()
