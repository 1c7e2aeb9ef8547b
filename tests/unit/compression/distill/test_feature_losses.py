"""Losses of features against sums by hand."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from cellvision.compression.distill.feature_losses import (
    compute_attention_loss,
    compute_channel_loss,
    compute_focus_loss,
    weigh_cells,
)

DRAW = np.random.default_rng(1)
STUDENT, TEACHER = DRAW.normal(0, 1, (2, 2, 3, 4, 4))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_channel_loss_is_the_divergence_over_places(temperature):
    found = compute_channel_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), temperature=temperature)
    rows = [softmax(maps.reshape(6, 16) / temperature, axis=1) for maps in (TEACHER, STUDENT)]
    assert found.item() == pytest.approx(rel_entr(*rows).sum(1).mean() * temperature**2)


def test_channel_loss_leaves_the_level_to_the_student():
    teacher = torch.tensor(TEACHER)
    assert compute_channel_loss(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-12)


def test_focus_loss_is_the_sum_by_hand():
    cells, outside = DRAW.random((2, 2, 4, 4))
    found = compute_focus_loss(
        torch.tensor(STUDENT),
        torch.tensor(TEACHER),
        cells=torch.tensor(cells),
        outside=torch.tensor(outside),
        temperature=0.7,
        outside_weight=0.3,
    )
    wanted_cells = wanted_outside = 0.0
    for image in range(2):
        strength = np.abs(TEACHER[image])
        where = softmax(strength.mean(0).ravel() / 0.7).reshape(4, 4) * 16
        which = softmax(strength.mean((1, 2)) / 0.7)
        for y in range(4):
            for x in range(4):
                squares = (STUDENT[image, :, y, x] - TEACHER[image, :, y, x]) ** 2
                value = (which * squares).sum() * where[y, x]
                wanted_cells += value * cells[image, y, x]
                wanted_outside += value * outside[image, y, x]
    assert found.item() == pytest.approx(wanted_cells / max(cells.sum(), 1) + 0.3 * wanted_outside / 2)


def test_every_cell_weighs_the_same_at_every_stride():
    labels = torch.zeros(2, 20, 24, dtype=torch.int32)
    labels[0, 1:3, 2:9], labels[0, 8:20, 3:15], labels[1, 5, 5] = 1, 2, 7
    for stride in (1, 4, 8):
        height, width = -(-20 // stride) + 1, -(-24 // stride)  # the map of a padded image
        cells, outside = weigh_cells(labels, stride=stride, height=height, width=width)
        assert cells.shape == (2, height, width)
        torch.testing.assert_close(cells.sum((1, 2)), torch.tensor([2.0, 1.0]))
        torch.testing.assert_close(outside.sum((1, 2)), torch.ones(2))
        assert cells[1, 5 // stride, 5 // stride] == 1
        assert outside[:, -1].sum() == 0


def test_no_cells_and_nothing_else_are_no_fault():
    for label in (0, 3):
        cells, outside = weigh_cells(torch.full((1, 8, 8), label, dtype=torch.int32), stride=2, height=4, width=4)
        assert (cells.sum().item(), outside.sum().item()) == pytest.approx((float(label > 0), float(label == 0)))


def test_attention_loss_is_the_distance_of_maps_of_length_one():
    student, teacher = DRAW.random((2, 3, 1, 4, 4))
    wanted = np.mean(
        [
            ((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2).sum()
            for s, t in zip(student.reshape(3, 16), teacher.reshape(3, 16), strict=True)
        ]
    )
    assert compute_attention_loss(torch.tensor(student), torch.tensor(teacher)).item() == pytest.approx(wanted)
    assert compute_attention_loss(torch.tensor(3 * teacher), torch.tensor(teacher)).item() < 1e-12


def test_no_maps_give_0_with_a_gradient():
    nothing = torch.zeros(0, 1, 4, 4, requires_grad=True)
    loss = compute_attention_loss(nothing, nothing.detach())
    loss.backward()
    assert loss == 0
    assert nothing.grad.shape == nothing.shape


def test_slopes_are_those_of_finite_differences():
    student = torch.tensor(STUDENT[:, :2, :2, :2], requires_grad=True)
    teacher = torch.tensor(TEACHER[:, :2, :2, :2])
    weights = {"cells": torch.rand(2, 2, 2).double(), "outside": torch.rand(2, 2, 2).double()}
    assert torch.autograd.gradcheck(lambda x: compute_channel_loss(x, teacher), student)
    assert torch.autograd.gradcheck(lambda x: compute_focus_loss(x, teacher, **weights), student)
    assert torch.autograd.gradcheck(lambda x: compute_attention_loss(x, teacher), student)
    assert compute_focus_loss(teacher, teacher, **weights) == 0
