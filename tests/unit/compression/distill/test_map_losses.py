"""Losses of maps against scipy, scikit-image and sums by hand."""

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr, softmax
from skimage.segmentation import find_boundaries

from cellvision.compression.distill.map_losses import (
    compute_class_divergence,
    compute_distance_loss,
    compute_sigmoid_divergence,
    compute_softmax_divergence,
    find_boundary,
    find_valid,
    to_logits,
)

DRAW = np.random.default_rng(0)
STUDENT, TEACHER = DRAW.normal(0, 3, (2, 2, 3, 4, 5))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_softmax_divergence_is_that_of_scipy(temperature):
    found = compute_softmax_divergence(torch.tensor(STUDENT), torch.tensor(TEACHER), temperature=temperature)
    wanted = rel_entr(softmax(TEACHER / temperature, axis=1), softmax(STUDENT / temperature, axis=1)).sum(1)
    np.testing.assert_allclose(found, wanted * temperature**2, rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_sigmoid_divergence_is_that_of_scipy(temperature):
    found = compute_sigmoid_divergence(torch.tensor(STUDENT), torch.tensor(TEACHER), temperature=temperature)
    yes, own = expit(TEACHER / temperature), expit(STUDENT / temperature)
    wanted = rel_entr(yes, own) + rel_entr(1 - yes, 1 - own)
    np.testing.assert_allclose(found, wanted * temperature**2, rtol=1e-7, atol=1e-12)
    summed = compute_class_divergence(
        torch.tensor(STUDENT), torch.tensor(TEACHER), activation="sigmoid", temperature=temperature
    )
    np.testing.assert_allclose(summed, wanted.sum(1) * temperature**2, rtol=1e-7)


def test_a_temperature_leaves_the_slope_of_large_logits_as_it_is():
    """Hinton et al.: with T^2 in front the slope tends to that of squared logits and not to 0."""
    slopes = []
    for temperature in (50.0, 200.0):
        student = torch.tensor(STUDENT, requires_grad=True)
        compute_softmax_divergence(student, torch.tensor(TEACHER), temperature=temperature).sum().backward()
        slopes.append(student.grad)
    difference = STUDENT - TEACHER
    wanted = (difference - difference.mean(1, keepdims=True)) / 3  # of K = 3 classes
    np.testing.assert_allclose(slopes[1], wanted, atol=0.1)
    assert (slopes[0] - slopes[1]).abs().max() < 0.2


def test_logits_of_any_size_give_finite_losses_and_slopes():
    student = torch.tensor([[[[1e4, -1e4]]]], requires_grad=True)
    loss = compute_sigmoid_divergence(student, -student.detach()).sum()
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", [compute_softmax_divergence, compute_sigmoid_divergence])
def test_slopes_are_those_of_finite_differences(loss):
    student = torch.tensor(STUDENT[:1, :, :2, :2], requires_grad=True)
    teacher = torch.tensor(TEACHER[:1, :, :2, :2])
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, temperature=2.0), student)
    assert loss(teacher, teacher).abs().max() < 1e-12


def test_boundaries_are_those_of_scikit_image():
    labels = DRAW.integers(0, 4, (2, 6, 7)).repeat(5, axis=1).repeat(5, axis=2)
    wanted = [find_boundaries(each, connectivity=2, mode="thick") for each in labels]
    assert np.array_equal(find_boundary(torch.tensor(labels)), wanted)


def test_a_wider_boundary_is_every_pixel_with_another_label_so_near():
    labels = torch.zeros(1, 9, 12, dtype=torch.int32)
    labels[:, 2:7, 3:6], labels[:, 2:7, 6:10] = 1, 2  # two cells that touch
    found = find_boundary(labels, radius_px=2)
    for row in range(9):
        for column in range(12):
            around = labels[0, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            assert found[0, row, column] == (around != labels[0, row, column]).any()


def test_distances_count_by_half_inside_and_outside():
    student, teacher = torch.tensor([[[[0.0, 2.0, -9.0]]]]), torch.tensor([[[[1.0, -5.0, 9.0]]]])
    valid = torch.tensor([[[1.0, 1.0, 0.0]]])
    found, wanted = expit([0.0, 2.0]), expit([1.0, -5.0])
    inside, outside = (max(abs(a - b) - 0.05, 0) for a, b in zip(found, wanted, strict=True))
    assert compute_distance_loss(student, teacher, valid).item() == pytest.approx((inside + outside) / 2, rel=1e-5)
    assert compute_distance_loss(teacher, teacher, valid) == 0


def test_logits_of_probabilities_give_them_back():
    probabilities = torch.tensor(softmax(TEACHER, axis=1))
    again = to_logits(probabilities, "softmax")
    np.testing.assert_allclose(again.softmax(1), probabilities, rtol=1e-5)
    at_two = (torch.tensor(TEACHER) / 2).softmax(1)
    np.testing.assert_allclose((again / 2).softmax(1), at_two, rtol=1e-3)
    np.testing.assert_allclose(to_logits(probabilities, "sigmoid").sigmoid(), probabilities[:, 1:], atol=1e-5)
    assert to_logits(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), "softmax").isfinite().all()


def test_padding_is_not_valid():
    valid = find_valid(torch.zeros(2, 1, 4, 5), ((4, 5), (3, 2)))
    assert valid[0].all()
    assert valid[1].sum() == 6
    assert valid[1, :3, :2].all()
    assert find_valid(torch.zeros(2, 1, 4, 5), None).all()
