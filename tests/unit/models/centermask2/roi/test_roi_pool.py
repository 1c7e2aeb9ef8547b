"""Pooling and the choice of levels against torchvision."""

import pytest
import torch
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from cellvision.errors import ConfigError
from cellvision.models.centermask2.roi.pool import RoiPool, flatten_boxes

STRIDES = {3: 8, 4: 16, 5: 32}


def make_pyramid(batch=2, channels=5, strides=STRIDES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        level: torch.randn(batch, channels, 256 // stride, 320 // stride, generator=generator)
        for level, stride in strides.items()
    }


def draw_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([320.0, 256.0])
    halves = 300 ** torch.rand(count, 2, generator=generator) / 2
    return torch.cat([centres - halves, centres + halves], dim=1)


def square(area):
    return [0.0, 0.0, area**0.5, area**0.5]


def test_share_of_the_image_chooses_the_level():
    pool = RoiPool(strides=STRIDES)
    areas = torch.tensor([1.0, 100.0, 250.0, 251.0, 499.0, 501.0, 1000.0, 5000.0])
    boxes = torch.tensor([square(area.item()) for area in areas])
    levels = pool.choose_levels(boxes, torch.full((8,), 1000.0))
    assert levels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert pool.choose_levels(torch.tensor([[5.0, 5, 5, 9]]), torch.tensor([1000.0])).tolist() == [0]  # no area


@pytest.mark.parametrize(("first", "last"), [(3, 5), (2, 5), (4, 4)])
def test_size_chooses_the_level_as_in_torchvision(first, last):
    pool = RoiPool(strides={level: 2**level for level in range(first, last + 1)}, criterion="area")
    boxes = draw_boxes(200)
    expected = LevelMapper(first, last, 224, 4, 1e-8)([boxes])
    assert torch.equal(pool.choose_levels(boxes, torch.ones(200)), expected)


def test_halved_strides_halve_the_size_that_a_level_is_for():
    half = RoiPool(strides={level: stride // 2 for level, stride in STRIDES.items()}, criterion="area")
    full = RoiPool(strides=STRIDES, criterion="area")
    boxes = draw_boxes(200)
    assert torch.equal(half.choose_levels(boxes / 2, torch.ones(200)), full.choose_levels(boxes, torch.ones(200)))


def test_features_are_those_of_roi_align_on_the_chosen_level_in_the_order_of_the_boxes():
    pyramid = make_pyramid()
    pool = RoiPool(strides=STRIDES, side=7)
    boxes, images, areas = flatten_boxes([draw_boxes(30, 1), draw_boxes(20, 2)], [(256, 320), (200, 100)])
    assert images.tolist() == [0] * 30 + [1] * 20
    assert areas.tolist() == [81920] * 30 + [20000] * 20
    found = pool(pyramid, boxes, images, areas)
    levels = pool.choose_levels(boxes, areas)
    assert len(levels.unique()) == 3
    for box, image, level, features in zip(boxes, images, levels, found, strict=True):
        name = list(STRIDES)[level]
        maps = pyramid[name][image : image + 1]
        expected = roi_align(maps, [box.unsqueeze(0)], 7, 1 / STRIDES[name], sampling_ratio=0, aligned=True)
        torch.testing.assert_close(features, expected[0])


def test_no_boxes_give_no_features_but_a_gradient():
    pyramid = {level: maps.requires_grad_() for level, maps in make_pyramid().items()}
    features = RoiPool(strides=STRIDES)(pyramid, *flatten_boxes([torch.zeros(0, 4)] * 2, [(256, 320)] * 2))
    assert features.shape == (0, 5, 14, 14)
    features.sum().backward()
    assert all((maps.grad == 0).all() for maps in pyramid.values())


def test_an_unknown_criterion_is_refused():
    with pytest.raises(ConfigError, match=r"unknown model.roi_criterion 'size'; need one of: area, ratio"):
        RoiPool(strides=STRIDES, criterion="size")
