import dataclasses
import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.measure import regionprops

from cellvision.bundle import Channel, Splitting
from cellvision.data.images import read_label_image
from cellvision.errors import BundleError, ConfigError, DataError, ShapeError
from cellvision.metrics.matching import match_cells
from cellvision.runtime.predictor import Predictor
from damaged_file import write_damaged
from stain_net import CHANNELS, build_graph, draw_cells, write_bundle

TILED = {"tile_px": 64, "overlap_px": 32}


@pytest.fixture(scope="module")
def untiled(stain_bundle):
    return Predictor(stain_bundle, tile_px=2048)


def check_equal(tiled, whole):
    """Tiled and untiled results agree: every cell, every pixel, every number up to rounding in sums."""
    assert len(tiled) == len(whole)
    np.testing.assert_array_equal(tiled.label_image, whole.label_image)
    for field in dataclasses.fields(whole):
        if isinstance(value := getattr(whole, field.name), np.ndarray):
            np.testing.assert_allclose(getattr(tiled, field.name), value, rtol=1e-9, err_msg=field.name)


def scatter(shape, *, spacing, jitter, radius, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.arange(spacing / 2, n - spacing / 2 + 1, spacing) for n in shape), indexing="ij")
    centres = np.stack([y.ravel(), x.ravel()], axis=1) + rng.uniform(-jitter, jitter, (y.size, 2))
    return centres, rng.uniform(radius - 2, radius, len(centres))


def test_every_cell_is_found_once_with_its_class_and_measures(untiled):
    centres, radii = scatter((300, 260), spacing=26, jitter=1.5, radius=11)
    dead = set(range(0, len(centres), 4))
    image = draw_cells((300, 260), centres, radii, dead)
    cells = untiled(image, pixel_size_um=0.5)
    assert len(cells) == len(centres)
    nearest = [
        np.argmin((centres[:, 0] - y) ** 2 + (centres[:, 1] - x) ** 2)
        for y, x in zip(cells.centroid_y_px, cells.centroid_x_px, strict=True)
    ]
    assert sorted(nearest) == list(range(len(centres)))
    assert [cells.classes[k] for k in cells.class_id] == ["dead" if i in dead else "live" for i in nearest]
    np.testing.assert_array_equal(cells.p_live > 0.5, cells.class_id == 1)
    regions = regionprops(cells.label_image, np.moveaxis(image, 0, -1).astype(float))
    np.testing.assert_allclose(cells.mean_intensity, [r.intensity_mean for r in regions])
    np.testing.assert_allclose(cells.area_um2, [r.area / 4 for r in regions])
    np.testing.assert_array_equal(cells.bbox, [r.bbox for r in regions])
    assert cells.viability().dead == len(dead)


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(64, 32), (64, 16), (40, 8), (128, 24)])
def test_tiles_change_nothing(stain_bundle, untiled, tile_px, overlap_px):
    centres, radii = scatter((230, 310), spacing=15, jitter=4, radius=10)
    image = draw_cells((230, 310), centres, radii, set(range(0, len(centres), 3)))
    whole = untiled(image)
    tiled = Predictor(stain_bundle, tile_px=tile_px, overlap_px=overlap_px)(image)
    assert tiled.tiles >= 6
    assert whole.tiles == 1
    check_equal(tiled, whole)


def test_cells_on_every_seam_and_corner(stain_bundle, untiled):
    seams = [0, 48, 96, 144, 199]
    centres = [(y, x) for y in seams for x in seams]
    image = draw_cells((200, 200), centres, 12)
    tiled = Predictor(stain_bundle, tile_px=48, overlap_px=16)(image)
    check_equal(tiled, untiled(image))
    assert len(tiled) == 25


def test_cells_larger_than_overlap_and_tile(stain_bundle, untiled):
    image = draw_cells((300, 400), [(150, 110), (150, 330), (20, 250), (280, 240)], [100, 60, 12, 12])
    tiled = Predictor(stain_bundle, tile_px=32, overlap_px=16)(image)
    check_equal(tiled, untiled(image))
    assert len(tiled) == 4


def test_ring_of_touching_cells_over_a_tile_corner(stain_bundle, untiled):
    angles = np.arange(12) * np.pi / 6
    centres = np.stack([96 + 40 * np.sin(angles), 96 + 40 * np.cos(angles)], axis=1)
    image = draw_cells((192, 192), centres, 11.2, dead={0, 5})
    whole, tiled = untiled(image), Predictor(stain_bundle, **TILED)(image)
    assert len(whole) == len(tiled) == 12
    # This picture is symmetric: a pixel as near to one neighbour as to the other may go to either.
    assert np.count_nonzero(tiled.label_image != whole.label_image) <= 4
    assert match_cells(tiled.label_image, whole.label_image, iou=0.99).iou.size == 12


def test_thousands_of_cells(stain_bundle, untiled):
    centres, radii = scatter((1100, 1100), spacing=18, jitter=2, radius=8)
    image = draw_cells((1100, 1100), centres, radii, set(range(0, len(centres), 5)))
    whole = untiled(image)
    assert len(whole) == len(centres) > 3000
    tiled = Predictor(stain_bundle, tile_px=256, overlap_px=32)(image)
    matches = match_cells(tiled.label_image, whole.label_image, iou=0.99)
    assert len(matches.pred_ids) == len(whole) == len(tiled)
    assert tiled.count("dead") == whole.count("dead")


def test_without_distance_regions_join_across_tiles(tmp_path):
    facts = {"splitting": Splitting(method="components"), "outputs": ("probabilities",)}
    bundle = write_bundle(tmp_path / "bundle", build_graph(distance=False), **facts)
    centres, radii = scatter((200, 200), spacing=15, jitter=4, radius=10, seed=3)
    image = draw_cells((200, 200), centres, radii)
    check_equal(Predictor(bundle, **TILED)(image), Predictor(bundle, tile_px=2048)(image))


@pytest.mark.parametrize("value", [0, 700, 65535])
@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (31, 33), (150, 170)])
def test_constant_images_give_no_cell_or_one(stain_bundle, shape, value):
    cells = Predictor(stain_bundle, **TILED)(np.full((2, *shape), value, np.uint16))
    expected = int(value == 65535 and np.prod(shape) >= 20)
    assert len(cells) == cells.label_image.max() == expected
    assert cells.label_image.shape == cells.shape == shape
    assert cells.mean_intensity.shape == (expected, 2)
    assert (cells.viability().viability is None) == (expected == 0)
    assert [row["class"] for row in cells.to_rows()] == ["dead"] * expected


def test_grey_image_may_come_without_channel_axis(tmp_path):
    model = build_graph(input_shape=("b", 1, "h", "w"))
    model.graph.node[0].input[0] = "twice"
    model.graph.node.insert(0, type(model.graph.node[0])(op_type="Concat", input=["image", "image"], output=["twice"]))
    model.graph.node[0].attribute.add(name="axis", i=1, type=2)
    predictor = Predictor(write_bundle(tmp_path / "bundle", model, channels=CHANNELS[:1]))
    image = draw_cells((40, 40), [(20, 20)], 10)
    assert len(predictor(image[0])) == len(predictor(image[:1])) == 1


@pytest.mark.parametrize("shape", [(4,), (2, 0, 5), (1, 2, 8, 8)])
def test_arrays_that_are_no_image(untiled, shape):
    with pytest.raises(ShapeError, match=r"need \(height, width\) or \(channels, height, width\), at least 1x1 px"):
        untiled(np.zeros(shape, np.uint16))


def test_channels_are_found_by_name(untiled):
    image = draw_cells((60, 60), [(20, 20), (45, 40)], 10, dead={1})
    expected = untiled(image)
    swapped = np.stack([image[1], image[1] * 0, image[0]])
    check_equal(untiled(swapped, channel_names=("PI", "brightfield", "nuclei")), expected)
    with pytest.raises(BundleError, match="has the channels nuclei, green, brightfield; need PI once among them"):
        untiled(swapped, channel_names=("nuclei", "green", "brightfield"))
    with pytest.raises(BundleError, match="need PI once"):
        untiled(swapped, channel_names=("nuclei", "PI", "PI"))
    with pytest.raises(BundleError, match=r"has 3 channels; need 2: nuclei, PI; try: --channels"):
        untiled(swapped)
    with pytest.raises(ConfigError, match=r"2 channel names .nuclei, PI. for the image of 3 channels"):
        untiled(swapped, channel_names=("nuclei", "PI"))


def test_counts_of_another_unit_are_refused_unless_scaled(stain_bundle, untiled):
    image = draw_cells((60, 60), [(20, 20), (45, 40)], 10, dead={1})
    eight = (image // 257).astype(np.uint8)
    with pytest.raises(
        BundleError, match=r"is uint8, whose counts mean something else .* need uint16; try: --intensity-scale"
    ):
        untiled(eight)
    cells = untiled(eight, intensity_scale=257)
    assert len(cells) == 2
    assert cells.mean_intensity.max() < 256
    assert len(untiled(image.astype(np.float32) / 4000, intensity_scale=4000)) == 2
    with pytest.raises(BundleError, match="is int32; need uint8, uint16 or float32"):
        untiled(image.astype(np.int32), intensity_scale=1)
    for counts, said in ((image * 1.0, "a count of .*e\\+06 at intensity_scale=4000"), (image * -1.0, "a count of -")):
        with pytest.raises(DataError, match=rf"{said}.*; need 0 to 65535, which the bundle's uint16 holds; try"):
            untiled(counts.astype(np.float32), intensity_scale=4000)
    with pytest.raises(ConfigError, match="intensity_scale=0"):
        untiled(image, intensity_scale=0)


def test_counts_are_never_cut_to_the_graphs_dtype(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", image_dtypes=("uint16", "float32"))
    with pytest.raises(
        BundleError, match="is float32 and the graph reads uint16; need counts that fit it without loss"
    ):
        Predictor(bundle)(np.zeros((2, 8, 8), np.float32))


def test_infinite_counts_are_refused(tmp_path):
    bundle = write_bundle(
        tmp_path / "bundle",
        build_graph(input_dtype="float32"),
        input_dtype="float32",
        image_dtypes=("uint16", "float32"),
    )
    assert len(Predictor(bundle)(draw_cells((40, 40), [(20, 20)], 10))) == 1
    with pytest.raises(DataError, match="NaN or infinite"):
        Predictor(bundle)(np.full((2, 8, 8), np.inf, np.float32))
    with pytest.raises(DataError, match=r"NaN or infinite values at intensity_scale=1e\+09"):
        Predictor(bundle)(np.full((2, 8, 8), 1e30, np.float32), intensity_scale=1e9)


@pytest.mark.parametrize("name", ["memory_mib", "tile_px", "overlap_px"])
def test_sizes_must_be_positive(stain_bundle, name):
    with pytest.raises(ConfigError, match=f"{name}=0; need a whole number from 1 to 500000000"):
        Predictor(stain_bundle, **{name: 0})


@pytest.mark.parametrize("value", [-1.0, 0.0, 6.5e-7, 1.1e6, 1e300, float("nan"), float("inf")])
def test_pixel_sizes_have_bounds(untiled, value):
    with pytest.raises(ConfigError, match=re.escape(f"pixel_size_um={value}; need a number of micrometres")):
        untiled(np.zeros((2, 4, 4), np.uint16), pixel_size_um=value)


@pytest.mark.parametrize("value", [1e-4, 1e6])
def test_pixel_sizes_within_the_bounds_are_written(untiled, tmp_path, value):
    image = tmp_path / "field.tif"
    tifffile.imwrite(image, draw_cells((40, 40), [(20, 20)], 9), photometric="minisblack")
    untiled.predict_to_folder(image, tmp_path / "out", pixel_size_um=value, overlay=False)
    with tifffile.TiffFile(tmp_path / "out" / "field_labels.tif") as tiff:
        pixels, centimetres = tiff.pages[0].tags["XResolution"].value
    assert 1e4 * centimetres / pixels == pytest.approx(value)


def test_too_little_memory_is_refused_before_the_work(stain_bundle):
    with pytest.raises(ConfigError, match=r"an image of 900x900 px takes .* need at most memory_mib=1"):
        Predictor(stain_bundle, memory_mib=1)(np.zeros((2, 900, 900), np.uint16))


def test_probabilities_are_those_of_the_whole_image(stain_bundle, untiled):
    image = draw_cells((150, 130), [(30, 30), (64, 64), (120, 100)], 12, dead={2})
    tiled, maps = Predictor(stain_bundle, **TILED).predict_with_probabilities(image)
    whole, expected = untiled.predict_with_probabilities(image)
    check_equal(tiled, whole)
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    np.testing.assert_array_equal(1 - maps[0] >= 0.5, whole.label_image > 0)


def test_progress_counts_tiles(stain_bundle):
    seen = []
    Predictor(stain_bundle, **TILED)(np.zeros((2, 150, 200), np.uint16), progress=lambda *tiles: seen.append(tiles))
    assert seen == [(i + 1, 6) for i in range(6)]


def test_filter_keeps_labels(untiled):
    cells = untiled(draw_cells((60, 90), [(20, 20), (40, 45), (30, 75)], [10, 12, 9]))
    large = cells.filter(cells.area_px > cells.area_px.min())
    assert large.label.tolist() == [1, 3] or len(large) == 2
    assert sorted(np.unique(large.label_image)) == [0, *large.label]
    assert len(large.mean_intensity) == 2
    with pytest.raises(ShapeError, match=r"a mask of int64 and shape \(3,\); need bool of shape \(3,\)"):
        cells.filter(np.arange(3))


def test_semantic_cells_have_no_viability(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", kind="semantic", classes=("background", "round", "flat"))
    cells = Predictor(bundle)(draw_cells((60, 60), [(20, 20), (45, 40)], 10, dead={1}))
    assert [row["class"] for row in cells.to_rows()] == ["round", "flat"]
    assert cells.p_live is None
    with pytest.raises(BundleError, match="cells of the classes round, flat; need a viability bundle"):
        cells.viability()


def test_live_threshold_decides(tmp_path):
    image = draw_cells((40, 40), [(20, 20)], 10)
    image[1, image[0] > 0] = 450  # dead share 0.27
    for threshold, expected in ((0.7, "live"), (0.8, "dead")):
        bundle = write_bundle(tmp_path / str(threshold), live_threshold=threshold)
        assert [row["class"] for row in Predictor(bundle)(image).to_rows()] == [expected]


@pytest.fixture
def picture(tmp_path):
    centres, radii = scatter((220, 180), spacing=24, jitter=2, radius=11)
    image = draw_cells((220, 180), centres, radii, set(range(0, len(centres), 3)))
    folder = tmp_path / "in"
    folder.mkdir()
    tifffile.imwrite(
        folder / "field.ome.tif",
        image[::-1],
        photometric="minisblack",
        metadata={"axes": "CYX", "Channel": {"Name": ["PI", "nuclei"]}, "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25},
    )
    return folder / "field.ome.tif", image


def test_files_hold_what_the_array_gives(stain_bundle, untiled, picture, tmp_path):
    path, image = picture
    streamed = Predictor(stain_bundle, **TILED).predict_to_folder(path, tmp_path / "out")
    expected = untiled(image, pixel_size_um=0.25)
    assert streamed.label_image is None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["field_labels.tif", "field_overlay.png"]
    labels = read_label_image(tmp_path / "out" / "field_labels.tif")
    check_equal(dataclasses.replace(streamed, label_image=labels), expected)
    with tifffile.TiffFile(tmp_path / "out" / "field_labels.tif") as tiff:
        assert tiff.pages[0].tags["XResolution"].value[0] / tiff.pages[0].tags["XResolution"].value[1] == 40000
    overlay = np.asarray(Image.open(tmp_path / "out" / "field_overlay.png"))
    assert overlay.shape[0] > 220
    live = np.isin(labels, expected.label[expected.class_id == 1])
    green = (overlay[:220, :180] == (0, 255, 0)).all(axis=-1)
    magenta = (overlay[:220, :180] == (255, 0, 255)).all(axis=-1)
    assert green.sum() > 200
    assert magenta.sum() > 100
    assert (live & ~green).any()
    assert not (green & ~live).any()
    assert not (magenta & live).any()


def test_a_failure_half_way_leaves_nothing(stain_bundle, picture, tmp_path):
    path, image = picture
    write_damaged(path, image)
    seen = []
    with pytest.raises(DataError, match=r"field\.ome\.tif"):
        Predictor(stain_bundle, **TILED).predict_to_folder(
            path, tmp_path / "out", progress=lambda *tiles: seen.append(tiles)
        )
    assert seen
    assert not (tmp_path / "out").exists()


def test_results_never_go_to_the_folder_of_the_image(stain_bundle, picture):
    path, _ = picture
    before = sorted(path.parent.iterdir())
    with pytest.raises(ConfigError, match=r"is that of field\.ome\.tif; need another folder"):
        Predictor(stain_bundle).predict_to_folder(path, path.parent / ".." / "in")
    assert sorted(path.parent.iterdir()) == before


def test_picture_that_must_be_decoded_whole_is_refused_from_its_header(tmp_path):
    bundle = write_bundle(
        tmp_path / "bundle", build_graph(input_dtype="uint8"), input_dtype="uint8", image_dtypes=("uint8",),
        channels=(*CHANNELS, Channel(name="other"))[:2],
    )  # fmt: skip
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((3000, 3000, 3), np.uint8)).save(tmp_path / "in" / "large.png")
    names = ("nuclei", "PI", "other")
    with pytest.raises(ConfigError, match=r"3000x3000 px takes .* need at most memory_mib=40"):
        Predictor(bundle, memory_mib=40).predict_to_folder(
            tmp_path / "in" / "large.png", tmp_path / "out", channel_names=names
        )
    assert not (tmp_path / "out").exists()
