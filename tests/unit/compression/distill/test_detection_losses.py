"""Losses of classes, boxes, centre-ness and masks against torchvision, scipy and sums by hand."""

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr
from torchvision.ops import generalized_box_iou_loss

from cellvision.compression.distill.detection_losses import (
    compute_fcos_box_loss,
    compute_fcos_centre_loss,
    compute_fcos_class_loss,
    compute_quality,
)
from cellvision.compression.distill.mask_losses import compute_mask_loss, compute_rating_loss

DRAW = np.random.default_rng(2)
STUDENT, TEACHER = DRAW.normal(0, 2, (2, 40, 3))
QUALITY = torch.tensor(DRAW.random(40))


def diverge(student, teacher):
    yes, own = expit(teacher), expit(student)
    return rel_entr(yes, own) + rel_entr(1 - yes, 1 - own)


def test_quality_is_the_score_of_fcos():
    centres = DRAW.normal(0, 2, (40, 1))
    found = compute_quality(torch.tensor(TEACHER), torch.tensor(centres))
    np.testing.assert_allclose(found, np.sqrt(expit(TEACHER).max(1) * expit(centres[:, 0])))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_classes_are_weighted_by_the_surer_net(gamma):
    total = weights = 0.0
    for own, wanted in zip(STUDENT, TEACHER, strict=True):
        weight = max(expit(own).max(), expit(wanted).max()) ** gamma
        total, weights = total + weight * diverge(own, wanted).sum(), weights + weight
    found = compute_fcos_class_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), gamma=gamma)
    assert found.item() == pytest.approx(total / weights)


def test_a_cell_that_only_the_student_sees_is_told_to_it():
    teacher = torch.full((1000, 1), -8.0)
    student = teacher.clone()
    student[0] = 4.0
    student.requires_grad_()
    compute_fcos_class_loss(student, teacher).backward()
    assert student.grad[0] > 0.4
    assert student.grad[1:].abs().max() < 1e-6


def test_boxes_are_compared_as_torchvision_does():
    student, teacher = torch.tensor(DRAW.random((2, 40, 4)) * 9 + 0.1)
    boxes = [torch.cat([-ltrb[:, :2], ltrb[:, 2:]], dim=1) for ltrb in (student, teacher)]
    sure = QUALITY >= 0.3
    losses = generalized_box_iou_loss(*boxes)
    wanted = (losses * QUALITY * sure).sum() / (QUALITY * sure).sum()
    assert compute_fcos_box_loss(student, teacher, QUALITY, confident=0.3).item() == pytest.approx(wanted.item())
    teacher[:5, [0, 2]] = 0  # no width, and so no overlap even with itself
    assert compute_fcos_box_loss(teacher, teacher, QUALITY).item() == pytest.approx(0, abs=1e-12)


def test_centreness_counts_where_the_teacher_is_sure():
    student, teacher = STUDENT[:, :1], TEACHER[:, :1]
    weights = np.where(QUALITY >= 0.6, QUALITY, 0)
    wanted = (diverge(student, teacher)[:, 0] * weights).sum() / weights.sum()
    found = compute_fcos_centre_loss(torch.tensor(student), torch.tensor(teacher), QUALITY, confident=0.6)
    assert found.item() == pytest.approx(wanted)


def test_a_teacher_that_is_nowhere_sure_gives_0_with_a_gradient():
    boxes, centres = torch.ones(40, 4, requires_grad=True), torch.ones(40, 1, requires_grad=True)
    loss = compute_fcos_box_loss(boxes, boxes.detach() * 2, QUALITY / 9)
    loss = loss + compute_fcos_centre_loss(centres, -centres.detach(), QUALITY / 9)
    loss.backward()
    assert loss == 0
    assert not boxes.grad.any()
    assert not centres.grad.any()


def test_boxes_without_size_give_finite_slopes():
    boxes = torch.zeros(2, 4, requires_grad=True)
    compute_fcos_box_loss(boxes, torch.tensor([[0.0] * 4, [1.0] * 4]), torch.ones(2)).backward()
    assert boxes.grad.isfinite().all()


def test_slopes_are_those_of_finite_differences():
    few = torch.tensor(STUDENT[:5], requires_grad=True)
    others = torch.tensor(TEACHER[:5])
    assert torch.autograd.gradcheck(lambda x: compute_fcos_class_loss(x, others, gamma=0), few)
    assert torch.autograd.gradcheck(lambda x: compute_fcos_centre_loss(x[:, :1], others[:, :1], QUALITY[:5]), few)
    boxes, wanted = torch.tensor(DRAW.random((2, 5, 4)) + 1)
    boxes.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: compute_fcos_box_loss(x, wanted, QUALITY[:5], confident=0), boxes)
    assert torch.autograd.gradcheck(lambda x: compute_mask_loss(x[None], others[None], temperature=2.0), few)
    assert torch.autograd.gradcheck(lambda x: compute_rating_loss(x[:, 0], others[:, 0]), few)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_masks_are_compared_pixel_by_pixel(temperature):
    student, teacher = DRAW.normal(0, 4, (2, 3, 6, 6))
    found = compute_mask_loss(torch.tensor(student), torch.tensor(teacher), temperature=temperature)
    assert found.item() == pytest.approx(diverge(student / temperature, teacher / temperature).mean() * temperature**2)


def test_ratings_differ_by_half_their_square_and_far_off_less():
    found = compute_rating_loss(torch.tensor([0.5, 9.0]), torch.tensor([0.7, 1.0]))
    assert found.item() == pytest.approx((0.02 + 5 * (8 - 2.5)) / 2)


def test_no_boxes_give_0_with_a_gradient():
    masks, ratings = torch.zeros(0, 6, 6, requires_grad=True), torch.zeros(0, requires_grad=True)
    loss = compute_mask_loss(masks, masks.detach()) + compute_rating_loss(ratings, ratings.detach())
    loss.backward()
    assert loss == 0
    assert ratings.grad is not None
