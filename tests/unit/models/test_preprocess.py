"""Normalisation and padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellvision.errors import ConfigError, DataError, ShapeError
from cellvision.models.preprocess import Normalize, find_white, pad_to_stride
from cellvision.types import DataStats

STATS = DataStats(offset=(10.0,), scale=(80.0,), class_pixels=(9, 1))


def stats(offset, scale):
    return DataStats(offset=offset, scale=scale, class_pixels=(1, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_normalize_is_the_formula_in_float32(dtype):
    normalize = Normalize(2)
    normalize.set_statistics(stats((10.0, 200.0), (5.0, 0.25)))
    images = torch.tensor([[[[0.0, 250.0]], [[3.0, 255.0]]]]).to(dtype)
    found = normalize(images)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0, :, 0], [[-2, 48], [(3 - 200) * 4, 55 * 4]])


def test_channel_that_never_varies_is_only_shifted():
    normalize = Normalize(1)
    normalize.set_statistics(stats((65535.0,), (0.0,)))
    assert normalize(torch.full((1, 1, 2, 2), 65535, dtype=torch.uint16)).tolist() == [[[[0, 0], [0, 0]]]]


@pytest.mark.parametrize(
    ("offset", "scale"),
    [
        ((1.0,), (1.0, 1.0)),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ((float("nan"), 0.0), (1.0, 1.0)),
        ((0.0, 0.0), (1.0, -1.0)),
    ],
)
def test_unusable_statistics_are_refused(offset, scale):
    with pytest.raises(DataError, match="finite offset and a finite scale from 0 up for each of 2 channels"):
        Normalize(2).set_statistics(stats(offset, scale))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 8, 8)])
def test_wrong_channels_are_refused(shape):
    with pytest.raises(ShapeError, match=r"images are of shape .*need \(images, 2 channels, height, width\)"):
        Normalize(2)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 1), (31, 33), (32, 64), (7, 200)])
@pytest.mark.parametrize("stride", [1, 4, 32])
def test_pad_repeats_the_last_row_and_column(shape, stride):
    images = torch.rand(2, 3, *shape)
    rest = [(0, -side % stride) for side in shape]
    expected = np.pad(images.numpy(), [(0, 0), (0, 0), *rest], mode="edge")
    np.testing.assert_array_equal(pad_to_stride(images, stride), expected)


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("percentile", ((10.0,), (80.0,))), ("fixed", ((10.0,), (80.0,))), ("none", ((0.0,), (255.0,)))],
)
def test_white_is_the_bright_end_or_255(normalization, expected):
    found = find_white(replace(STATS, normalization=normalization), needed_by="x")
    assert (found.offset, found.scale) == expected


def test_white_is_unknown_under_zscore():
    with pytest.raises(ConfigError, match=r"^data\.normalization=zscore with x; need the counts .*; try: data\.normal"):
        find_white(replace(STATS, normalization="zscore"), needed_by="x")
