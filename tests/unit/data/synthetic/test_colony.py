"""Dense cells: exactly as many as asked for, whole, apart, and of the size that fits."""

import numpy as np
import pytest
from scipy import ndimage

from cellvision.data.synthetic.colony import LEAST_PX, grow_colony
from cellvision.data.synthetic.generating import build_generator


def grow(count, *, radius=6.0, packing=0.8, height=96, width=128, seed=0, stretch=1.5):
    return grow_colony(
        build_generator(seed),
        radii_px=np.full(count, radius),
        stretches=np.full(count, stretch),
        packing=packing,
        height=height,
        width=width,
    )


@pytest.mark.parametrize("count", [0, 1, 2, 40, 300, 96 * 128 // LEAST_PX])
@pytest.mark.parametrize("seed", range(3))
def test_as_many_cells_as_asked_for_each_in_one_piece(count, seed):
    colony = grow(count, seed=seed)
    labels = colony.label_image
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(labels), np.arange(count + 1))
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        assert ndimage.label(labels[box] == label)[1] == 1
    assert ((colony.depth < 1) == (labels > 0)).all()
    assert colony.depth.min() >= 0


def test_cells_have_the_stated_size_where_there_is_room():
    areas = np.bincount(grow(12, radius=7, packing=0.3).label_image.ravel())[1:]
    inner = np.sort(areas)[3:]  # some are cut by the border
    assert np.median(inner) == pytest.approx(np.pi * 49, rel=0.2)


def test_crowded_cells_are_smaller_and_touch():
    labels = grow(300).label_image
    assert 0.5 < (labels > 0).mean() < 0.9
    below, above = labels[1:], labels[:-1]
    assert np.sum((below != above) & (below > 0) & (above > 0)) > 300
    assert np.percentile(np.bincount(labels.ravel())[1:], 1) >= 4


def test_cells_grow_in_islands():
    covered = [ndimage.uniform_filter((grow(30, packing=p).label_image > 0).astype(float), 24) for p in (0.9, 0.3)]
    assert covered[0].max() > 0.7
    assert covered[0].max() > covered[1].max()
    assert covered[0].min() == pytest.approx(0)
