"""The semantic branch: its geometry, and its losses against torch."""

import pytest
import torch
import torch.nn.functional as F

from cellvision.models.centermask2.semantic import SemanticBranch
from cellvision.types import IGNORE, Targets

STRIDES = {2: 4, 3: 8, 4: 16}


def build(*, width=8, classes=3, weight=0.5, strides=STRIDES):
    torch.manual_seed(0)
    return SemanticBranch(strides=strides, in_channels=6, width=width, classes=classes, weight=weight)


def make_pyramid(height, width, *, batch=2, strides=STRIDES):
    """Maps of a padded image of that size, and one coarser level that the branch has no part in."""
    generator = torch.Generator().manual_seed(1)
    sizes = {**strides, 5: 32}
    return {
        level: torch.randn(batch, 6, -(-height // stride), -(-width // stride), generator=generator)
        for level, stride in sizes.items()
    }


def make_targets(classes):
    shape = classes.shape
    return Targets(
        class_map=classes,
        distance=torch.zeros(shape),
        label_image=torch.zeros(shape, dtype=torch.int32),
        cell_classes=(torch.zeros(0, dtype=torch.int64),) * len(classes),
    )


@pytest.mark.parametrize("size", [(64, 96), (57, 83), (1, 1)])
def test_every_pixel_has_logits(size):
    assert build()(make_pyramid(64, 96), size=size).shape == (2, 3, *size)


def test_levels_of_odd_size_fit_each_other():
    """A map of 5 x 7 has one of 3 x 4 above it, which grows to 6 x 8."""
    strides = {3: 8, 4: 16}
    pyramid = make_pyramid(40, 56, strides=strides)
    assert [tuple(maps.shape[2:]) for maps in pyramid.values()] == [(5, 7), (3, 4), (2, 2)]
    assert build(strides=strides)(pyramid, size=(40, 56)).shape == (2, 3, 40, 56)


def test_maps_of_one_pixel_can_be_trained_on():
    branch = build(width=2).train()
    pyramid = make_pyramid(4, 4)
    assert {tuple(maps.shape[2:]) for maps in pyramid.values()} == {(1, 1)}
    assert branch(pyramid, size=(4, 4)).isfinite().all()


@pytest.mark.parametrize("axis", [2, 3])
def test_no_level_is_shifted_against_another(axis):
    """With kernels that are their own mirror image, a mirrored pyramid has mirrored logits."""
    branch = build()
    with torch.no_grad():
        for parameter in branch.parameters():
            if parameter.ndim == 4:
                parameter.copy_((parameter + parameter.flip(axis)) / 2)
        pyramid = make_pyramid(64, 96)
        expected = branch(pyramid, size=(64, 96)).flip(axis)
        found = branch({level: maps.flip(axis) for level, maps in pyramid.items()}, size=(64, 96))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_every_level_has_a_say():
    branch, pyramid = build(), make_pyramid(64, 96)
    with torch.no_grad():
        before = branch(pyramid, size=(64, 96))
        for level in STRIDES:
            changed = branch({**pyramid, level: -pyramid[level]}, size=(64, 96))
            assert not torch.allclose(changed, before)
        assert torch.equal(branch({**pyramid, 5: -pyramid[5]}, size=(64, 96)), before)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_losses_are_cross_entropy_and_soft_overlap(weight):
    """Oracle: torch's cross-entropy, and intersection over union of probabilities written out for each class."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, 12, 10, generator=generator)
    classes = torch.randint(0, 3, (2, 12, 10), generator=generator)
    classes[0, :4] = IGNORE
    losses = build(weight=weight).losses(logits, make_targets(classes))
    assert list(losses) == ["semantic_ce", "semantic_iou"]
    expected = F.cross_entropy(logits, classes, ignore_index=IGNORE)
    torch.testing.assert_close(losses["semantic_ce"], weight * expected)
    counts = classes != IGNORE
    overlaps = []
    for kind in (1, 2):
        found, truth = logits.softmax(1)[:, kind][counts], (classes == kind)[counts].float()
        shared = (found * truth).sum()
        overlaps.append((shared + 1) / (found.sum() + truth.sum() - shared + 1))
    torch.testing.assert_close(losses["semantic_iou"], weight * (1 - torch.stack(overlaps)).mean())


@pytest.mark.parametrize("ignored", [False, True])
def test_every_parameter_gets_a_finite_gradient(ignored):
    branch = build()
    classes = torch.full((2, 64, 96), IGNORE) if ignored else torch.randint(0, 3, (2, 64, 96))
    losses = branch.losses(branch(make_pyramid(64, 96), size=(64, 96)), make_targets(classes))
    sum(losses.values()).backward()
    slopes = [parameter.grad for parameter in branch.parameters()]
    assert all(slope is not None and slope.isfinite().all() for slope in slopes)
    assert any(slope.any() for slope in slopes) != ignored
