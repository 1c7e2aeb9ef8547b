import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellvision.errors import ConfigError
from cellvision.runtime.maps.splitting import measure_cells
from cellvision.runtime.maps.stitching import Stitcher
from cellvision.runtime.tiles.tiling import Costs, Tile, choose_tile_px, plan_spans, round_up


@settings(deadline=None, max_examples=200)
@given(
    length=st.integers(1, 700), tile=st.integers(1, 12), overlap=st.integers(1, 6), stride=st.sampled_from([1, 8, 16])
)
def test_cores_cover_everything_once_and_windows_keep_the_margin(length, tile, overlap, stride):
    tile_px, overlap_px = tile * stride, overlap * stride
    spans = plan_spans(length, tile_px=tile_px, overlap_px=overlap_px)
    assert spans[0].start == 0
    assert spans[-1].stop == length
    assert all(a.stop == b.start for a, b in itertools.pairwise(spans))
    for span in spans:
        assert span.start < span.stop
        assert span.window_start % stride == 0
        assert span.window_stop - span.window_start <= tile_px + 2 * overlap_px
        assert span.window_start == 0 or span.start - span.window_start >= overlap_px
        assert span.window_stop == length or span.window_stop - span.stop >= overlap_px


def test_one_window_is_one_span():
    assert len(plan_spans(96, tile_px=64, overlap_px=16)) == 1
    assert len(plan_spans(97, tile_px=64, overlap_px=16)) == 2


@pytest.mark.parametrize(("value", "expected"), [(1, 16), (16, 16), (17, 32), (0, 16)])
def test_round_up(value, expected):
    assert round_up(value, 16) == expected


COSTS = Costs(per_window_px=1000, per_band_px=10, fixed=0)


def choose(memory_mib, smallest_px=64):
    return choose_tile_px(
        (5000, 5000),
        largest_px=512,
        smallest_px=smallest_px,
        stride=16,
        overlap_px=32,
        costs=COSTS,
        memory_mib=memory_mib,
    )


def test_tile_shrinks_until_it_fits():
    assert choose(1000) == 512
    for memory_mib in (200, 50):
        tile_px = choose(memory_mib)
        assert tile_px % 16 == 0
        totals = [COSTS.compute_total((5000, 5000), tile_px=px, overlap_px=32) for px in (tile_px, tile_px + 16)]
        assert totals[0] <= memory_mib * 2**20 < totals[1]


def test_too_little_memory_is_refused_with_the_amount_needed():
    with pytest.raises(
        ConfigError, match="takes 22 MiB in tiles of 64 px; need at most memory_mib=4; try: memory_mib=22,"
    ):
        choose(4)
    with pytest.raises(ConfigError, match="in tiles of 512 px"):
        choose(200, smallest_px=512)


def test_a_bundle_of_small_tiles_keeps_them():
    assert choose(1000, smallest_px=1024) == 512
    with pytest.raises(ConfigError, match="in tiles of 512 px"):
        choose(200, smallest_px=1024)


def stitch(windows, shape, *, tile_px, overlap_px, min_area_px=1):
    """The final label image, from the label image that each tile saw in its window."""
    spans = [plan_spans(n, tile_px=tile_px, overlap_px=overlap_px) for n in shape]
    stitcher, sums, ids = Stitcher(width=shape[1], overlap_px=overlap_px), [], np.zeros(shape, np.int32)
    for rows in spans[0]:
        for columns in spans[1]:
            seen = windows(rows, columns)
            core = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
            inner = seen[
                rows.start - rows.window_start : rows.stop - rows.window_start,
                columns.start - columns.window_start : columns.stop - columns.window_start,
            ]
            blank = np.ones((1, *inner.shape), np.float32)
            sums.append(
                measure_cells(
                    inner,
                    blank,
                    np.repeat(blank, 2, axis=0),
                    count=int(seen.max(initial=0)),
                    origin=(rows.start, columns.start),
                    image_width=shape[1],
                )
            )
            ids[core] = stitcher.add(Tile(rows=rows, columns=columns), seen)
    table, merged = stitcher.resolve(sums, min_area_px=min_area_px)
    final = table[ids]
    np.testing.assert_array_equal(np.bincount(final.ravel(), minlength=len(merged.area) + 1)[1:], merged.area)
    return final


def look(truth):
    """A view of a known label image: each tile numbers the cells of its window in its own way."""

    def window(rows, columns):
        seen = truth[rows.window_start : rows.window_stop, columns.window_start : columns.window_stop]
        values, numbered = np.unique(seen, return_inverse=True)
        return (numbered.reshape(seen.shape) + (values[0] != 0)).astype(np.int32)

    return window


def to_raster_order(label_image):
    values, first = np.unique(label_image, return_index=True)
    table = np.zeros(label_image.max() + 1, np.int32)
    cells = values[values > 0][np.argsort(first[values > 0])]
    table[cells] = np.arange(1, len(cells) + 1)
    return table[label_image]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), tile=st.integers(2, 6), overlap=st.integers(2, 4), sites=st.integers(1, 60))
def test_any_partition_comes_back_from_its_tiles(seed, tile, overlap, sites):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 100, 2))
    centres = rng.uniform(0, 1, (sites, 2)) * shape
    y, x = np.indices(shape)
    nearest = np.argmin([(y - cy) ** 2 + (x - cx) ** 2 for cy, cx in centres], axis=0)
    truth = np.where(rng.random(sites)[nearest] < 0.7, nearest + 1, 0).astype(np.int32)
    final = stitch(look(truth), shape, tile_px=tile * 8, overlap_px=overlap * 8)
    np.testing.assert_array_equal(final, to_raster_order(truth))


def test_cell_that_spans_all_tiles_is_one_cell():
    truth = np.zeros((200, 200), np.int32)
    truth[5:195, 20:30] = truth[5:195, 170:180] = truth[185:195, 20:180] = 1  # a U whose arms meet in the last tiles
    truth[10:20, 60:80] = 2
    np.testing.assert_array_equal(stitch(look(truth), (200, 200), tile_px=32, overlap_px=8), truth)


def test_tiles_that_disagree_about_a_cell_do_not_cut_it():
    truth = np.zeros((20, 60), np.int32)
    truth[5:15, 20:44] = 1

    def window(rows, columns):
        seen = look(truth)(rows, columns)
        if columns.start > 0:  # the second tile takes the one cell for two
            seen[10:][seen[10:] > 0] += 1
        return seen

    np.testing.assert_array_equal(stitch(window, (20, 60), tile_px=24, overlap_px=8), truth)


def test_neighbours_are_not_joined_by_a_ragged_border():
    truth = np.zeros((40, 60), np.int32)
    truth[5:20, 20:44] = 1
    truth[20:35, 20:44] = 2

    def window(rows, columns):
        moved = truth.copy()
        if columns.start > 0:  # the second tile draws the line between them elsewhere
            moved[17:20, 20:44] = 2
        return look(moved)(rows, columns)

    final = stitch(window, (40, 60), tile_px=24, overlap_px=8)
    assert final.max() == 2
    assert len(np.unique(final[6])) == len(np.unique(final[30])) == 2


def test_sliver_that_only_one_tile_sees_is_dropped():
    def window(rows, columns):
        seen = np.zeros((20, columns.window_stop - columns.window_start), np.int32)
        if columns.start == 0:
            seen[5:15, columns.stop - 1 : columns.stop + 8] = 1
        return seen

    assert stitch(window, (20, 60), tile_px=24, overlap_px=8).max() == 1
    assert stitch(window, (20, 60), tile_px=24, overlap_px=8, min_area_px=11).max() == 0
