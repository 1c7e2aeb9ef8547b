import numpy as np
import pytest

from cellvision.errors import DataError
from cellvision.runtime import cell_meter
from cellvision.runtime.cell_meter import CellMeter, cut_bands
from cellvision.runtime.files import mapped_labels
from cellvision.runtime.files.mapped_labels import MappedLabels
from cellvision.runtime.maps.splitting import measure_cells


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("height", [1, 7, 40])
def test_bands_add_up_to_the_image(dtype, height):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 30, (40, 50)).astype(np.int32)
    labels[labels == 7] = 0
    image = rng.integers(0, 200, (2, 40, 50)).astype(dtype)
    labels[13, 13] = 7  # a cell of one pixel
    meter = CellMeter(count=29, width=50)
    for top in range(0, 40, height):
        meter.add(top, labels[top : top + height], image[:, top : top + height])
    expected = measure_cells(labels, image, None, count=29)
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(meter.resolve(), name), values, err_msg=name)


def test_no_cells_are_no_rows():
    meter = CellMeter(count=0, width=5)
    meter.add(0, np.zeros((3, 5), np.int32), np.zeros((2, 3, 5), np.uint8))
    sums = meter.resolve()
    assert sums.area.shape == (0,)
    assert sums.intensity.shape == (0, 2)


@pytest.mark.parametrize("shape", [(1, 1), (10, 30), (7, 101), (50, 3)])
def test_bands_cover_all_rows_once(monkeypatch, shape):
    monkeypatch.setattr(cell_meter, "BAND_PX", 100)
    bands = list(cut_bands(shape))
    assert [row for top, bottom in bands for row in range(top, bottom)] == list(range(shape[0]))
    assert all((bottom - top) * shape[1] <= 100 or bottom - top == 1 for top, bottom in bands)


@pytest.mark.parametrize("reserves", [True, False])
def test_mapped_labels_are_zeros_that_can_be_written(tmp_path, monkeypatch, reserves):
    if not reserves:
        monkeypatch.delattr(mapped_labels.os, "posix_fallocate", raising=False)
    with MappedLabels(tmp_path, (300, 5001)) as labels:
        assert labels.array.shape == (300, 5001)
        assert labels.array.dtype == np.int32
        assert not labels.array.any()
        labels.array[299, 5000] = 7
        labels.array[3:5, 2:4][np.eye(2, dtype=bool)] = 9
        assert labels.array.sum() == 25
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_before_the_work(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped_labels.os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(
        DataError, match=r"no room for 4 MiB of labels in .* \(No space left on device\); need that much"
    ):
        MappedLabels(tmp_path, (1024, 1024))
    assert list(tmp_path.iterdir()) == []
