"""Normalisation against numpy on the pooled pixels."""

import numpy as np
import pytest

from cellvision.data.statistics import compute_stats
from cellvision.errors import ConfigError, DataError
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


def test_class_pixels_leave_ignored_ones_out():
    stats = compute_stats(SAMPLES, channels=[0], classes=3)
    assert stats.class_pixels == (2 * (1600 - 20 - 6), 0, 40)


def test_bad_settings_are_explained():
    with pytest.raises(ConfigError, match=r"data.normalization 'min'.*none, percentile, zscore"):
        compute_stats(SAMPLES, channels=[0], classes=3, normalization="min")
    with pytest.raises(ConfigError, match=r"data.percentiles=\[99, 1\]"):
        compute_stats(SAMPLES, channels=[0], classes=3, percentiles=(99, 1))
    with pytest.raises(DataError, match="no training image"):
        compute_stats([], channels=[0], classes=3)
