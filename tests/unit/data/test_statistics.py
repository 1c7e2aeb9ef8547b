"""Normalisation against numpy on the pooled pixels."""

import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from cellvision.data.statistics import NORMALIZATIONS, compute_stats, find_fault
from cellvision.errors import ConfigError, DataError
from cellvision.models.build import build_model
from cellvision.types import IGNORE, Sample


def make_sample(seed: int, size: int = 40) -> Sample:
    rng = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    labels[:4, :5], labels[10:13, :2] = 1, 2
    image = rng.integers(0, 60_000, (3, size, size)).astype(np.uint16)
    image[2] = 7
    return Sample(name=str(seed), group=str(seed), image=image, label_image=labels, cell_classes=np.array([2, IGNORE]))


SAMPLES = [make_sample(0), make_sample(1)]


def test_percentiles_are_those_of_all_pixels_together():
    stats = compute_stats(SAMPLES, channels=[1, 0], classes=3, percentiles=(2.0, 98.0))
    pooled = np.concatenate([s.image[[1, 0]].reshape(2, -1) for s in SAMPLES], axis=1)
    low, high = np.percentile(pooled, [2, 98], axis=1)
    assert stats.offset == pytest.approx(low)
    assert stats.scale == pytest.approx(high - low)


def test_zscore_and_none():
    stats = compute_stats(SAMPLES, channels=[0], classes=3, normalization="zscore")
    pooled = np.concatenate([s.image[0].ravel() for s in SAMPLES]).astype(np.float64)
    assert stats.offset[0] == pytest.approx(pooled.mean())
    assert stats.scale[0] == pytest.approx(pooled.std())
    untouched = compute_stats(SAMPLES, channels=[0], classes=3, normalization="none")
    assert (untouched.offset, untouched.scale) == ((0.0,), (1.0,))


@pytest.mark.parametrize("normalization", ["percentile", "zscore"])
def test_a_constant_channel_has_scale_one(normalization):
    stats = compute_stats(SAMPLES, channels=[2], classes=3, normalization=normalization)
    assert (stats.offset, stats.scale) == ((7.0,), (1.0,))


def to_type(dtype: str) -> Sample:
    sample = make_sample(0)
    return replace(sample, image=(sample.image // 256).astype(np.uint8).astype(dtype))


@pytest.mark.parametrize(("dtype", "bright"), [("uint8", 255.0), ("uint16", 65_535.0)])
def test_fixed_takes_what_the_type_can_hold(dtype, bright):
    stats = compute_stats([to_type(dtype)], channels=[0, 2], classes=3, normalization="fixed")
    assert (stats.offset, stats.scale) == ((0.0, 0.0), (bright, bright))


@pytest.mark.parametrize(
    ("given", "offset", "scale"),
    [
        ([100, 4095], (100.0, 100.0), (3995.0, 3995.0)),
        ([[0, 255], [-1.5, 4095]], (0.0, -1.5), (255.0, 4096.5)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_fixed_range_is_taken_as_given(given, offset, scale, dtype):
    stats = compute_stats([to_type(dtype)], channels=[1, 0], classes=3, normalization="fixed", count_range=given)
    assert (stats.offset, stats.scale) == (offset, scale)


def test_a_published_mean_means_the_same_in_8_and_in_16_bits():
    """Oracle: (grey value of 0..255 - mean) / deviation, written out."""
    mean, std = 128.0, 11.578
    eight, sixteen = to_type("uint8"), to_type("uint16")
    sixteen.image[:] *= 257  # 255 becomes 65535
    shown = []
    for sample in (eight, sixteen):
        net = build_model(
            name="centermask2", in_channels=1, classes=["background", "cell"], backbone="vovnet19_slim_dw",
            fpn_channels=32, pixel_mean=[mean], pixel_std=[std],
        )  # fmt: skip
        net.set_statistics(compute_stats([sample], channels=[0], classes=3, normalization="fixed"))
        shown.append(net.normalize(torch.from_numpy(sample.image[:1].astype(np.float32))[None])[0])
    expected = (eight.image[:1].astype(np.float64) - mean) / std
    np.testing.assert_allclose(shown[0], expected, atol=1e-4)
    np.testing.assert_allclose(shown[1], expected, atol=1e-4)


@pytest.mark.parametrize("normalization", ["fixed", "none"])
def test_pixels_are_collected_only_where_they_are_measured(normalization):
    """A hundred thousand photographs would not fit into memory otherwise."""
    wide = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (3, 1000, 1000))
    labels = np.zeros((1000, 1000), np.int32)
    one = Sample(name="a", group="a", image=wide, label_image=labels, cell_classes=np.array([], np.int64))
    tracemalloc.start()
    compute_stats((one for _ in range(60)), channels=[0, 1, 2], classes=3, normalization=normalization)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = 60 * 3 * 65_536 * 4
    assert peak < 0.5 * kept


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (255, r"data\.count_range=255; need finite counts \[dark, bright\].* each of 2 channels"),
        ("ab", r"data\.count_range=ab"),
        ([255, 0], r"data\.count_range=\[255, 0\]"),
        ([7, 7], r"data\.count_range=\[7, 7\]"),
        ([0, float("inf")], r"data\.count_range=\[0, inf\]"),
        ([0, True], r"data\.count_range=\[0, True\]"),
        ([0, 1, 2], r"data\.count_range=\[0, 1, 2\]"),
        ([[0, 255]], r"data\.count_range=\[\[0, 255\]\]; .*; try: data\.count_range=\[0,255\]"),
        ([[0, 255], [9, 1]], r"data\.count_range=\[\[0, 255\], \[9, 1\]\]"),
    ],
)
def test_a_range_that_is_none_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        compute_stats(SAMPLES, channels=[0, 1], classes=3, normalization="fixed", count_range=given)


def test_a_range_that_nothing_uses_or_tells_is_refused():
    with pytest.raises(ConfigError, match=r"data\.count_range=\[0, 1\] with data\.normalization=zscore; need fixed"):
        compute_stats(SAMPLES, channels=[0], classes=3, normalization="zscore", count_range=[0, 1])
    with pytest.raises(ConfigError, match=r"fixed for float32 images; .*; try: data\.count_range=\[0,4095\]"):
        compute_stats([to_type("float32")], channels=[0], classes=3, normalization="fixed")
    with pytest.raises(ConfigError, match=r"fixed for uint16 and uint8 images"):
        compute_stats([to_type("uint8"), SAMPLES[0]], channels=[0], classes=3, normalization="fixed")


def test_class_pixels_leave_ignored_ones_out():
    stats = compute_stats(SAMPLES, channels=[0], classes=3)
    assert stats.class_pixels == (2 * (1600 - 20 - 6), 0, 40)


def test_bad_settings_are_explained():
    with pytest.raises(ConfigError, match=r"data.normalization 'min'.*fixed, none, percentile, zscore"):
        compute_stats(SAMPLES, channels=[0], classes=3, normalization="min")
    with pytest.raises(ConfigError, match=r"data.percentiles=\[99, 1\]"):
        compute_stats(SAMPLES, channels=[0], classes=3, percentiles=(99, 1))
    with pytest.raises(DataError, match="no training image"):
        compute_stats([], channels=[0], classes=3)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_statistics_tell_where_they_come_from(normalization):
    stats = compute_stats(SAMPLES, channels=[0], classes=3, normalization=normalization)
    assert stats.normalization == normalization
    assert pickle.loads(pickle.dumps(stats)) == stats


@pytest.mark.parametrize(
    ("dtype", "bright", "share", "fault"),
    [
        (np.uint8, 255, 0.06, "with over 5% of the pixels at 255"),
        (np.uint8, 255, 0.04, None),
        (np.uint8, 254, 0.5, None),
        (np.uint16, 65535, 0.06, "with over 5% of the pixels at 65535"),
        (np.float32, 255.0, 0.5, None),
        (np.uint8, 255, 1.0, "constant"),
        (np.float32, 3.5, 1.0, "constant"),
    ],
)
def test_constant_and_saturated_channels_are_found(dtype, bright, share, fault):
    image = np.random.default_rng(0).integers(10, 200, (2, 50, 60)).astype(dtype)
    assert find_fault(image) is None
    image[1].flat[: round(share * 3000)] = bright
    assert find_fault(image) == fault
