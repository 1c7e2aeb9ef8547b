"""Box losses against torchvision where it has them, else against the formula."""

import pytest
import torch
from torchvision.ops import box_iou, complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from cellvision.ops.box_losses import BOX_LOSSES, compute_box_losses, compute_centreness

TORCHVISION = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
    "linear_iou": lambda found, truth: 1 - box_iou(found, truth).diagonal(),
    "iou": lambda found, truth: -box_iou(found, truth).diagonal().log(),
}


def draw_ltrb(seed, count=50):
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * 4 + 0.05


def to_corners(ltrb):
    return torch.cat([5 - ltrb[:, :2], 5 + ltrb[:, 2:]], dim=1)


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_losses_and_gradients_are_those_of_torchvision(kind):
    found, truth = draw_ltrb(0).requires_grad_(), draw_ltrb(1)
    ours = compute_box_losses(found, truth, kind=kind)
    theirs = TORCHVISION[kind](to_corners(found), to_corners(truth))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        *(torch.autograd.grad(losses.sum(), found)[0] for losses in (ours, theirs)), rtol=1e-3, atol=1e-4
    )


def test_smoothed_giou_is_that_of_the_published_nets():
    (left, top, right, bottom), (l_true, t_true, r_true, b_true) = (1.0, 2.0, 0.5, 1.5), (2.0, 1.0, 1.0, 1.0)
    area, true_area = (left + right) * (top + bottom), (l_true + r_true) * (t_true + b_true)
    shared = (1.0 + 0.5) * (1.0 + 1.0)
    union = area + true_area - shared
    enclosing = (2.0 + 1.0) * (2.0 + 1.5)
    expected = 1 - ((shared + 1) / (union + 1) - (enclosing - union) / enclosing)
    found, truth = torch.tensor([[left, top, right, bottom]]), torch.tensor([[l_true, t_true, r_true, b_true]])
    assert compute_box_losses(found, truth, kind="giou", smoothing=1.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", BOX_LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_a_box_without_area_has_a_finite_loss_and_gradient(kind, smoothing):
    """ReLU gives exact zeros, above all in a net that has learned nothing yet."""
    before = torch.tensor([[0.0, 0, 0, 0], [-1, 2, -1, 2], [1, -1, 1, -1], [1e-9, 1e-9, 0, 1]], requires_grad=True)
    truth = torch.tensor([[0.01, 0.02, 0.03, 0.04]]).expand(4, -1)
    losses = compute_box_losses(before.relu(), truth, kind=kind, smoothing=smoothing)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert before.grad.isfinite().all()


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_the_true_box_costs_nothing(kind):
    truth = draw_ltrb(3)
    for smoothing in (0.0, 1.0):
        losses = compute_box_losses(truth, truth, kind=kind, smoothing=smoothing)
        torch.testing.assert_close(losses, torch.zeros(50), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_no_boxes_give_no_losses(kind):
    nothing = torch.zeros(0, 4, requires_grad=True)
    losses = compute_box_losses(nothing, nothing.detach(), kind=kind)
    assert losses.shape == (0,)
    losses.sum().backward()


def test_centreness():
    ltrb = torch.tensor([[2.0, 2, 2, 2], [1, 2, 3, 8], [1, 1, 4, 1]])
    expected = [1.0, (1 / 3 * 2 / 8) ** 0.5, 0.5]
    torch.testing.assert_close(compute_centreness(ltrb), torch.tensor(expected))
    assert compute_centreness(torch.zeros(0, 4)).shape == (0,)
