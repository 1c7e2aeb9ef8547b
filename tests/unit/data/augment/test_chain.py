"""Augmentation: image and labels together, no invented labels, no hidden chance, no surprises on odd input."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import masks_to_boxes

from cellvision.data.augment import (
    Augment,
    ChannelJitter,
    CropByCells,
    Field,
    GaussianNoise,
    IlluminationField,
    PoissonNoise,
    RandomBlur,
    RandomCrop,
    RandomElastic,
    RandomFlip,
    RandomGamma,
    RandomIntensity,
    RandomRotate,
    RandomScaleCrop,
    ResizeShortestEdge,
    build_default_steps,
    compute_background,
    compute_boxes,
)
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.errors import ConfigError, ShapeError

GEOMETRY = {
    "flip": RandomFlip(),
    "rotate": RandomRotate(degrees=180, probability=1),
    "elastic": RandomElastic(probability=1),
    "crop": RandomCrop(size=24),
    "crop_larger": RandomCrop(size=(70, 20)),
    "scale_crop": RandomScaleCrop(size=32, scale=(0.5, 2.0)),
    "crop_by_cells": CropByCells(size=40, max_cells=3, min_visible=0.4),
    "resize": ResizeShortestEdge(sizes=(60, 130), max_size=150),
}
INTENSITY = {
    "intensity": RandomIntensity(probability=1),
    "gamma": RandomGamma(probability=1),
    "channels": ChannelJitter(drop=0.5, probability=1),
    "illumination": IlluminationField(probability=1),
    "blur": RandomBlur(probability=1),
    "poisson": PoissonNoise(probability=1),
    "noise": GaussianNoise(sigma=(0.01, 0.1), probability=1),
}
STEPS = GEOMETRY | INTENSITY
SIZES = [(48, 48), (31, 33), (1, 40), (1, 1), (40, 2)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build_field(height=48, width=48, *, seed=0, channels=3):
    """Discs of cells with gaps in the numbering, on counts between 100 and 1100."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int32)
    for label in (3, 4, 9, 200, 70001):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 64] = label
    image = rng.uniform(100, 300, (channels, height, width)) + 800 * (labels > 0)
    return Field(image=torch.from_numpy(image).float(), label_image=torch.from_numpy(labels))


def is_equal(one, other):
    return torch.equal(one.image, other.image) and torch.equal(one.label_image, other.label_image)


@pytest.fixture(scope="module")
def cells():
    sample = SyntheticLiveDead(fields=1, height=96, width=96, cells=(14, 14)).sample(0)
    return Field(
        image=torch.from_numpy(sample.image.astype(np.float32)), label_image=torch.from_numpy(sample.label_image)
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_step_is_safe_repeatable_and_writes_into_nothing(name, size):
    field = build_field(*size)
    image, labels = field.image.clone(), field.label_image.clone()
    for seed in range(3):
        state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        result = STEPS[name](field, seeded(seed))
        assert torch.equal(state[0], torch.get_rng_state())
        assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
        assert is_equal(result, STEPS[name](field, seeded(seed)))
        assert result.image.dtype == torch.float32
        assert result.label_image.dtype == torch.int32
        assert torch.isfinite(result.image).all()
        assert result.image.min() >= 0
        assert set(result.label_image.unique().tolist()) <= {0, *labels.unique().tolist()}
    assert torch.equal(field.image, image)
    assert torch.equal(field.label_image, labels)


@pytest.mark.parametrize("name", STEPS)
def test_constant_and_dark_images_stay_finite(name):
    for value in (0.0, 137.0, 65535.0):
        field = Field(image=torch.full((2, 31, 33), value), label_image=torch.zeros(31, 33, dtype=torch.int32))
        result = STEPS[name](field, seeded())
        assert torch.isfinite(result.image).all()
        assert result.image.min() >= 0
        assert torch.allclose(result.image, torch.tensor(value))


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_leaves_labels_and_changes_counts(name):
    field = build_field()
    result = INTENSITY[name](field, seeded(1))
    assert torch.equal(result.label_image, field.label_image)
    assert result.image.shape == field.image.shape
    assert not torch.equal(result.image, field.image)


@pytest.mark.parametrize("name", INTENSITY)
def test_counts_below_zero_stay_where_they_were_or_rise(name):
    field = Field(image=build_field().image - 500, label_image=build_field().label_image)
    result = INTENSITY[name](field, seeded(2))
    assert torch.isfinite(result.image).all()
    assert (result.image >= field.image.clamp(max=0)).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", GEOMETRY)
def test_image_and_labels_move_together(name, seed, cells):
    """An image that shows the outline of one cell must, after the step, still agree with that cell's label."""
    ids = cells.label_image.unique()[1:]
    planes = torch.stack([(cells.label_image.as_subclass(torch.Tensor) == label).float() for label in ids])
    result = GEOMETRY[name](Field(image=1000 * planes, label_image=cells.label_image), seeded(seed))
    labels = result.label_image.as_subclass(torch.Tensor)
    assert labels.any()
    for plane, label in zip(result.image, ids, strict=True):
        shown, told = plane > 500, labels == label
        # Interpolation may disagree here and there along the outline.
        assert (shown ^ told).sum() <= max(4, 0.08 * told.sum())


@pytest.mark.parametrize("name", ["flip", "crop", "crop_larger"])
def test_whole_pixel_steps_are_exact(name, cells):
    copy = Field(image=cells.label_image[None].float(), label_image=cells.label_image)
    for seed in range(8):
        result = GEOMETRY[name](copy, seeded(seed))
        assert torch.equal(result.image[0].int(), result.label_image)


def test_flip_reaches_all_eight_positions():
    field = build_field(16, 16, seed=3)
    seen = {RandomFlip()(field, seeded(seed)).label_image.numpy().tobytes() for seed in range(80)}
    square = field.label_image.numpy()
    expected = {np.rot90(m, k).tobytes() for m in (square, square[:, ::-1]) for k in range(4)}
    assert seen == expected


def test_rotation_by_a_right_angle_is_rot90(monkeypatch):
    field = build_field(32, 32)
    monkeypatch.setattr("cellvision.data.augment.geometry.draw_uniform", lambda rng, low, high: 90.0)
    result = RandomRotate(probability=1)(field, seeded())
    assert torch.equal(result.label_image, torch.rot90(field.label_image, 1, (0, 1)))
    assert torch.allclose(result.image, torch.rot90(field.image, 1, (1, 2)), atol=0.05)


def test_crops_show_every_place():
    field = Field(image=torch.arange(5.0).repeat(1, 5, 1), label_image=torch.zeros(5, 5, dtype=torch.int32))
    lefts = {int(RandomCrop(size=2)(field, seeded(seed)).image[0, 0, 0]) for seed in range(60)}
    assert lefts == {0, 1, 2, 3}


def test_places_outside_are_empty_background():
    field = build_field(20, 20)
    result = RandomCrop(size=64)(field, seeded())
    level = compute_background(field)
    outside = torch.ones(64, 64, dtype=torch.bool)
    box = compute_boxes((result.image[0] != level[0]).int()).corners[0].int().tolist()
    outside[box[1] : box[3], box[0] : box[2]] = False
    assert outside.sum() >= 64 * 64 - 400
    assert torch.equal(result.image[:, outside], level[:, 0].expand(-1, int(outside.sum())))
    assert not result.label_image[outside].any()
    assert (level > 150).all()
    assert (level < 250).all()


def test_background_of_a_field_full_of_cells_is_the_lowest_count():
    field = Field(image=torch.arange(1.0, 10).reshape(1, 3, 3), label_image=torch.ones(3, 3, dtype=torch.int32))
    assert compute_background(field).item() == 1


def test_scale_crop_magnifies_cells():
    y, x = torch.meshgrid(torch.arange(200) - 100, torch.arange(200) - 100, indexing="ij")
    disc = (y**2 + x**2 < 30**2).int()
    field = Field(image=100.0 * disc[None], label_image=disc)
    for scale in (0.6, 1.0, 1.7):
        result = RandomScaleCrop(size=round(180 * scale), scale=(scale, scale))(field, seeded())
        assert (result.label_image > 0).sum().item() == pytest.approx(math.pi * (30 * scale) ** 2, rel=0.03)
        # Labels shifted by a fraction of a pixel against the image would show here.
        light = result.image[0] / result.image.sum()
        middle = (result.label_image > 0).nonzero().float().mean(0)
        assert (light.sum(1) * torch.arange(light.shape[0])).sum().item() == pytest.approx(middle[0].item(), abs=0.1)
        assert (light.sum(0) * torch.arange(light.shape[1])).sum().item() == pytest.approx(middle[1].item(), abs=0.1)


def test_elastic_moves_by_about_alpha():
    size = 128
    ramp = torch.arange(float(size)).repeat(1, size, 1)
    labels = torch.zeros(size, size, dtype=torch.int32)
    moved = RandomElastic(alpha_px=4, probability=1)(Field(image=ramp, label_image=labels), seeded())
    inside = (moved.image - ramp)[:, 16:-16, 16:-16]
    assert 1 < inside.std() < 5


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**16))
def test_boxes_agree_with_torchvision(height, width, seed):
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 5, (height, width)).astype(np.int32) * 3)
    ids, corners = compute_boxes(labels)
    expected = labels.unique()
    expected = expected[expected > 0]
    assert torch.equal(ids, expected.long())
    if len(expected):
        oracle = masks_to_boxes(labels[None] == expected[:, None, None])
        # Torchvision gives the last pixel's index, here the edge behind it.
        assert torch.equal(corners, oracle + torch.tensor([0.0, 0, 1, 1]))
    assert corners.shape == (len(ids), 4)


def test_boxes_follow_the_labels():
    field = build_field()
    cut = RandomCrop(size=16)(field, seeded(4))
    assert torch.equal(cut.boxes.corners, compute_boxes(cut.label_image).corners)
    assert cut.boxes.corners.max() <= 16
    empty = compute_boxes(torch.zeros(4, 4, dtype=torch.int32))
    assert empty.ids.shape == (0,)
    assert empty.corners.shape == (0, 4)


@pytest.mark.parametrize(("lowest", "span"), [(0.0, 1.0), (30.0, 200.0), (1000.0, 60000.0), (0.5, 1e-3)], ids=str)
def test_poisson_noise_has_the_variance_of_photons_in_any_range(lowest, span):
    shares, photons = torch.tensor([0.0, 0.1, 0.5, 1.0]), 400.0
    image = lowest + span * shares[:, None].expand(4, 100_000)[None]
    field = Field(image=image, label_image=torch.zeros(image.shape[1:], dtype=torch.int32))
    result = PoissonNoise(photons=(photons, photons), probability=1)(field, seeded())
    seen = photons * (result.image[0].double() - lowest) / span
    assert torch.allclose(seen.mean(1), photons * shares.double(), rtol=0.01, atol=0.1)
    assert torch.allclose(seen.var(1), photons * shares.double(), rtol=0.03, atol=0.1)


def test_poisson_noise_is_visible_but_leaves_the_image():
    field = build_field(96, 96)
    for divisor in (1.0, 1100.0):  # counts of a camera, and shares of the brightest
        image = field.image / divisor
        noisy = [PoissonNoise(probability=1)(replace(field, image=image), seeded(seed)).image for seed in range(20)]
        errors = torch.stack([(one - image).std() / image.std() for one in noisy])
        assert errors.min() > 0.01
        assert errors.max() < 0.15


def test_poisson_noise_leaves_a_constant_channel_and_repeats():
    image = torch.stack([torch.full((31, 33), 0.3), torch.rand((31, 33), generator=seeded())])
    field = Field(image=image, label_image=torch.zeros(31, 33, dtype=torch.int32))
    one, other = (PoissonNoise(probability=1)(field, seeded(5)) for _ in range(2))
    assert torch.equal(one.image[0], image[0])
    assert not torch.equal(one.image[1], image[1])
    assert torch.equal(one.image, other.image)


def test_gaussian_noise_has_the_stated_size():
    image = torch.full((1, 300, 300), 500.0)
    image[0, 0, :2] = torch.tensor([0.0, 1000.0])
    field = Field(image=image, label_image=torch.zeros(300, 300, dtype=torch.int32))
    result = GaussianNoise(sigma=(0.02, 0.02), probability=1)(field, seeded())
    assert (result.image - image)[:, 1:].std().item() == pytest.approx(20, rel=0.03)


def test_gamma_keeps_the_ends_and_the_order():
    field = build_field()
    result = RandomGamma(gamma=(0.4, 0.4), probability=1)(field, seeded())
    for old, new in zip(field.image.flatten(1), result.image.flatten(1), strict=True):
        assert new.min().item() == pytest.approx(old.min().item(), rel=1e-5)
        assert new.max().item() == pytest.approx(old.max().item(), rel=1e-5)
        assert (new[old.argsort()].diff() >= 0).all()
    assert result.image.mean() > field.image.mean()


def test_channel_jitter_keeps_one_channel():
    field = build_field()
    for seed in range(20):
        result = ChannelJitter(drop=1.0, probability=1)(field, seeded(seed))
        flat = result.image.flatten(1)
        assert (flat.amax(1) > flat.amin(1)).sum() == 1


def test_blur_keeps_the_sum_inside():
    image = torch.zeros(1, 41, 41)
    image[0, 20, 20] = 900.0
    field = Field(image=image, label_image=torch.zeros(41, 41, dtype=torch.int32))
    result = RandomBlur(sigma_px=(2.0, 2.0), probability=1)(field, seeded())
    assert result.image.sum().item() == pytest.approx(900, rel=1e-4)
    spread = (result.image[0].sum(0) * (torch.arange(41) - 20.0) ** 2).sum() / 900
    assert spread.item() == pytest.approx(4.0, rel=0.05)


def test_probability_nought_changes_nothing():
    field = build_field()
    for kind in (RandomRotate, RandomElastic, RandomIntensity, RandomGamma, ChannelJitter, IlluminationField):
        assert is_equal(kind(probability=0)(field, seeded()), field)
    for kind in (RandomBlur, PoissonNoise, GaussianNoise):
        assert is_equal(kind(probability=0)(field, seeded()), field)


def test_default_chain_is_repeatable_and_switchable(cells):
    steps = build_default_steps(size=64)
    augment = Augment(steps)
    results = [augment(cells, seeded(seed)) for seed in range(25)]
    again = [augment(cells, seeded(seed)) for seed in range(25)]
    assert all(is_equal(one, other) for one, other in zip(results, again, strict=True))
    assert len({result.image.numpy().tobytes() for result in results}) == 25
    assert all(result.image.shape == (3, 64, 64) for result in results)
    off = Augment({**dict.fromkeys(steps), "crop": RandomCrop(size=64)})
    assert list(off.steps) == ["crop"]
    assert is_equal(off(cells, seeded(1)), RandomCrop(size=64)(cells, seeded(1)))
    assert is_equal(Augment({})(cells, seeded()), cells)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: RandomFlip(horizontal=1.5), "RandomFlip horizontal=1.5; need 0.*; try: horizontal=0.5$"),
        (lambda: RandomRotate(degrees=-3), "RandomRotate degrees=-3"),
        (lambda: RandomGamma(gamma=(2.0, 1.0)), r"least first; try: gamma=\[.+, .+\]$"),
        (lambda: RandomGamma(gamma=[1.0]), "two numbers"),
        (lambda: GaussianNoise(sigma=None), "sigma=None"),
        (lambda: PoissonNoise(photons=(0, 50)), r"PoissonNoise photons=\(0, 50\)"),
        (lambda: RandomCrop(size=0), "RandomCrop size=0; need an edge from 1 to 16384 px, or a height and a width"),
        (lambda: RandomCrop(size=10**20), "an edge from 1"),
        (lambda: RandomCrop(size="large"), "an edge from 1"),
        (lambda: RandomCrop(size=(64, 64, 64)), "an edge from 1"),
        (lambda: RandomScaleCrop(size=(64, 0.5)), "an edge from 1"),
        (lambda: RandomScaleCrop(size=(5, -1)), "an edge from 1"),
        (lambda: Augment({"flip": "yes"}), "augment.flip='yes'"),
    ],
)
def test_wrong_settings(build, text):
    with pytest.raises(ConfigError, match=text):
        build()


def test_field_of_unequal_sizes():
    with pytest.raises(ShapeError, match=r"image \(1, 4, 4\)"):
        Field(image=torch.zeros(1, 4, 4), label_image=torch.zeros(4, 5, dtype=torch.int32))
    with pytest.raises(ShapeError, match="int64"):
        Field(image=torch.zeros(1, 4, 4), label_image=torch.zeros(4, 4, dtype=torch.int64))
