"""Whole fields resized. Oracle: Pillow; sizes as in published recipes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellvision.data.augment import Field
from cellvision.data.augment.geometry import ResizeShortestEdge, compute_resized, resize
from cellvision.errors import ConfigError


def build_field(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (2, height, width)).astype(np.float32)
    return Field(
        image=torch.from_numpy(image), label_image=torch.from_numpy(rng.integers(0, 50, (height, width), np.int32))
    )


@pytest.mark.parametrize(
    ("size", "shortest", "longest", "expected"),
    [
        ((520, 704), 800, 1333, (800, 1083)),  # LIVECell at test time, as its authors ran it
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 640, 1333, (640, 959)),
        ((400, 1000), 800, 1333, (533, 1333)),
        ((1000, 400), 800, 1333, (1333, 533)),
        ((100, 100), 50, 1333, (50, 50)),
        ((3, 1000), 1, 100, (1, 100)),  # no edge becomes 0
    ],
)
def test_sizes(size, shortest, longest, expected):
    assert compute_resized(*size, shortest=shortest, longest=longest) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1200), st.integers(1, 2000))
def test_shape_and_limits_are_kept(height, width, shortest, longest):
    new = compute_resized(height, width, shortest=shortest, longest=longest)
    assert max(new) <= longest
    assert min(new) == shortest or max(new) == longest
    scale = min(shortest / min(height, width), longest / max(height, width))
    assert all(
        abs(edge - old * scale) <= 0.5 + 1e-6 or edge == 1 for edge, old in zip(new, (height, width), strict=True)
    )


# Heights divisible by 8, widths by 32: no new pixel's middle lies on the edge of two old ones, where either is nearest.
@pytest.mark.parametrize("size", [(32, 64), (88, 96), (56, 32), (60, 80)])
def test_image_and_labels_agree_with_pillow(size):
    field = build_field(60, 80)
    result = resize(field, size)
    for plane, old in zip(result.image.numpy(), field.image.numpy(), strict=True):
        expected = Image.fromarray(old.astype(np.uint8)).resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.abs(plane - np.asarray(expected, np.float32)).max() <= 1.01  # Pillow rounds to whole grey values
    expected = Image.fromarray(field.label_image.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(result.label_image, np.asarray(expected))


def test_every_size_is_drawn_and_one_field_stays_as_it_is():
    field = build_field(20, 30)
    step = ResizeShortestEdge(sizes=[10, 20, 25], max_size=36)
    seen = [step(field, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert {(one.height, one.width) for one in seen} == {(10, 15), (20, 30), (24, 36)}
    assert any(torch.equal(one.image, field.image) for one in seen)
    again = step(field, torch.Generator().manual_seed(7))
    assert torch.equal(again.image, seen[7].image)


@pytest.mark.parametrize(
    ("sizes", "max_size"), [((), 100), ((0,), 100), ((10.5,), 100), ((10,), 0), (10, 100), ("640", 100)], ids=str
)
def test_wrong_settings(sizes, max_size):
    with pytest.raises(ConfigError, match=r"ResizeShortestEdge sizes=.*; need lengths of at least 1 px"):
        ResizeShortestEdge(sizes=sizes, max_size=max_size)
