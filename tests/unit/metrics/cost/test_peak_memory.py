"""Peak memory of a process of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cellvision.errors import BundleError
from cellvision.metrics.cost import peak_memory
from cellvision.metrics.cost.peak_memory import count_free_mib, draw_counts, measure_bundle_memory, run_measurement

linux_only = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell the peak")

HOLD = (
    "import numpy; from cellvision.metrics.cost.peak_memory import print_peak; print_peak(lambda: numpy.ones({} << 17))"
)


@linux_only
def test_growth_is_what_the_work_takes():
    small, large = (run_measurement([sys.executable, "-c", HOLD.format(mib)], what="it") for mib in (1, 200))
    assert 195 <= large.growth_mib - small.growth_mib <= 205
    assert large.peak_mib > large.growth_mib > 199


@linux_only
def test_the_batch_that_is_given_is_the_one_that_is_run(stain_bundle):
    """Of another dtype than the graph's input, the process refuses it; of its own, it takes what its size takes."""
    with pytest.raises(BundleError, match=r"measures its memory failed \(.*float"):
        measure_bundle_memory(stain_bundle, batch=np.zeros((1, 2, 32, 32), np.float32), threads=1)
    batches = (np.zeros((n, 2, 256, 256), np.uint16) for n in (1, 8))
    one, many = (measure_bundle_memory(stain_bundle, batch=batch, threads=1) for batch in batches)
    outputs_mib = 7 * 256 * 256 * 4 * 4 / 2**20  # of the seven more images, four planes of float32
    assert many.growth_mib - one.growth_mib > outputs_mib
    assert one.peak_mib > 20


@linux_only
def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(BundleError, match=r"measures its memory failed \(.*has no manifest\.json"):
        measure_bundle_memory(tmp_path, batch=np.zeros((1, 2, 32, 32), np.uint16))
    with pytest.raises(BundleError, match=r"it: the process that measures its memory failed \(exit status 3\)"):
        run_measurement([sys.executable, "-c", "raise SystemExit(3)"], what="it")


def test_unknown_where_the_system_does_not_tell(monkeypatch, stain_bundle, tmp_path):
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "absent")
    assert measure_bundle_memory(stain_bundle, batch=np.zeros((1, 2, 32, 32), np.uint16)) is None


@pytest.mark.parametrize(("dtype", "largest"), [("uint8", 255), ("uint16", 65535), ("float32", 1.0)])
def test_random_counts_fill_the_range_and_are_the_same_each_time(dtype, largest):
    counts = draw_counts(dtype, (2, 3, 64, 64))
    assert (counts.dtype.name, counts.shape) == (dtype, (2, 3, 64, 64))
    assert 0.99 * largest < counts.max() <= largest
    assert (counts == draw_counts(dtype, (2, 3, 64, 64))).all()


@pytest.mark.parametrize(
    ("image_dtypes", "largest"),
    [((), 1.0), (("float32",), 1.0), (("uint16", "uint8"), 255.0), (("uint16", "float32"), 65535.0)],
)
def test_random_floats_are_as_bright_as_the_images_that_a_net_was_made_for(image_dtypes, largest):
    counts = draw_counts("float32", (1, 2, 64, 64), image_dtypes=image_dtypes)
    assert counts.dtype == np.float32
    assert 0.99 * largest < counts.max() <= largest


def test_there_is_free_memory():
    assert count_free_mib() >= 1
