import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label, regionprops
from skimage.segmentation import relabel_sequential

from cellvision.bundle import Splitting
from cellvision.errors import BundleError
from cellvision.runtime.maps.splitting import measure_cells, merge_sums, split_cells
from stain_net import draw_cells

PLAIN = Splitting(min_area_px=1, min_seed_px=1)


def to_maps(foreground, p_dead=0.0):
    foreground = np.asarray(foreground, np.float32)
    return np.stack([1 - foreground, foreground * (1 - p_dead), foreground * p_dead]).astype(np.float32)


def discs(shape, centres, radius):
    y, x = np.indices(shape)
    return np.any([(y - cy) ** 2 + (x - cx) ** 2 <= radius**2 for cy, cx in centres], axis=0)


def test_touching_discs_part_at_the_line_between_their_centres():
    foreground = discs((30, 44), [(15, 13), (15, 29)], 9)
    distance = ndimage.distance_transform_edt(foreground) / 9
    cells = split_cells(to_maps(foreground), distance.astype(np.float32), splitting=Splitting(seed_threshold=0.7))
    assert cells.max() == 2
    assert cells[15, 13] == 1
    assert cells[15, 29] == 2
    np.testing.assert_array_equal(cells > 0, foreground)
    assert (cells[:, :21] != 2).all()
    assert (cells[:, 22:] != 1).all()


def test_ring_of_touching_cells_keeps_its_number():
    angles = np.arange(9) * 2 * np.pi / 9
    centres = np.stack([50 + 30 * np.sin(angles), 50 + 30 * np.cos(angles)], axis=1)
    image = draw_cells((100, 100), centres, 11.5)[0].astype(np.float32)
    cells = split_cells(to_maps(image >= 1000), image / 4000, splitting=Splitting(seed_threshold=0.7))
    assert label(image >= 1000).max() == 1
    assert cells.max() == 9


def test_components_agree_with_skimage():
    foreground = np.random.default_rng(0).random((60, 70)) < 0.45
    cells = split_cells(to_maps(foreground), None, splitting=Splitting(method="components", min_area_px=1))
    np.testing.assert_array_equal(cells, relabel_sequential(label(foreground, connectivity=1))[0])
    assert cells.dtype == np.int32


def test_foreground_without_a_seed_is_one_cell_per_region():
    foreground = discs((40, 90), [(20, 15), (20, 45), (20, 75)], 8)
    distance = np.zeros((40, 90), np.float32)
    distance[18:23, 43:48] = 1
    cells = split_cells(to_maps(foreground), distance, splitting=Splitting())
    np.testing.assert_array_equal(cells, label(foreground, connectivity=1))
    np.testing.assert_array_equal(split_cells(to_maps(foreground), distance * 0, splitting=Splitting()), cells)


def test_small_cells_and_small_seeds_are_dropped():
    foreground = discs((30, 60), [(15, 15), (15, 45)], 8)
    foreground[2:4, 28:31] = True
    distance = (foreground * 0.4).astype(np.float32)
    distance[15, 15] = 1
    distance[15, 43:48] = 1
    distance[12:14, 14:18] = 1
    cells = split_cells(to_maps(foreground), distance, splitting=Splitting(min_area_px=7, min_seed_px=3))
    assert cells.max() == 2
    assert split_cells(to_maps(foreground), distance, splitting=Splitting(min_area_px=6, min_seed_px=1)).max() == 4


def test_threshold_is_reached_by_an_equal_value():
    maps = np.stack([np.full((4, 4), 0.5), np.full((4, 4), 0.5)]).astype(np.float32)
    assert split_cells(maps, None, splitting=Splitting(method="components", min_area_px=16)).max() == 1
    above = Splitting(method="components", min_area_px=16, foreground_threshold=0.51)
    assert split_cells(maps, None, splitting=above).max() == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (33, 31)])
def test_constant_maps_give_no_cell_or_one(shape, value):
    maps = to_maps(np.full(shape, value))
    cells = split_cells(maps, np.full(shape, value, np.float32), splitting=PLAIN)
    np.testing.assert_array_equal(cells, np.full(shape, int(value)))


def test_same_input_same_labels_in_raster_order():
    rng = np.random.default_rng(1)
    foreground = ndimage.gaussian_filter(rng.random((80, 80)), 2) > 0.5
    distance = ndimage.gaussian_filter(rng.random((80, 80)), 2).astype(np.float32) + 0.1
    first = split_cells(to_maps(foreground), distance, splitting=PLAIN)
    np.testing.assert_array_equal(first, split_cells(to_maps(foreground), distance, splitting=PLAIN))
    _, where = np.unique(first.ravel(), return_index=True)
    assert (np.diff(where[1:]) > 0).all()


def test_distance_method_needs_a_distance_map():
    with pytest.raises(BundleError, match=r"no output 'distance'; need that output; try: splitting.method=components"):
        split_cells(to_maps(np.ones((4, 4))), None, splitting=Splitting())


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(2)
    label_image = split_cells(
        to_maps(ndimage.gaussian_filter(rng.random((90, 120)), 2) > 0.5), None, splitting=Splitting(method="components")
    )
    image = rng.integers(0, 65536, (3, 90, 120)).astype(np.uint16)
    probabilities = rng.dirichlet([1, 1, 1], (90, 120)).astype(np.float32).transpose(2, 0, 1)
    return label_image, image, probabilities


def test_measures_agree_with_regionprops(measured):
    label_image, image, probabilities = measured
    sums = measure_cells(label_image, image, probabilities)
    regions = regionprops(label_image, np.moveaxis(image, 0, -1).astype(np.float64))
    assert sums.area.tolist() == [r.area for r in regions]
    centroids = np.stack([sums.sum_y, sums.sum_x], axis=1) / sums.area[:, None]
    np.testing.assert_allclose(centroids, [r.centroid for r in regions], rtol=1e-12)
    boxes = np.stack([sums.top, sums.left, sums.bottom, sums.right], axis=1)
    np.testing.assert_array_equal(boxes, [r.bbox for r in regions])
    np.testing.assert_allclose(sums.intensity / sums.area[:, None], [r.intensity_mean for r in regions], rtol=1e-12)
    shares = probabilities[1:].astype(np.float64) / probabilities[1:].astype(np.float64).sum(axis=0)
    expected = [[plane[label_image == r.label].mean() for plane in shares] for r in regions]
    np.testing.assert_allclose(sums.probability / sums.area[:, None], expected, rtol=1e-12)


def test_pieces_add_up_to_the_whole(measured):
    label_image, image, probabilities = measured
    whole = measure_cells(label_image, image, probabilities)
    count = int(label_image.max())
    parts = [
        measure_cells(
            label_image[rows, columns],
            image[:, rows, columns],
            probabilities[:, rows, columns],
            count=count,
            origin=(rows.start, columns.start),
            image_width=120,
        )
        for rows in (slice(0, 37), slice(37, 90))
        for columns in (slice(0, 50), slice(50, 120))
    ]
    merged = merge_sums(parts, np.tile(np.arange(1, count + 1), 4), count)
    for name, values in vars(whole).items():
        np.testing.assert_allclose(getattr(merged, name), values, rtol=1e-12, err_msg=name)


def test_no_cell_measures_as_nothing():
    sums = measure_cells(np.zeros((5, 6), np.int32), np.ones((2, 5, 6), np.uint8), to_maps(np.zeros((5, 6))))
    assert sums.area.shape == (0,)
    assert sums.intensity.shape == (0, 2)
    assert sums.probability.shape == (0, 2)
