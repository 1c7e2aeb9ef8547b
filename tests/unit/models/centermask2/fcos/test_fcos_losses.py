"""The losses against torch and torchvision, place by place, and over two processes."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from cellvision.models.centermask2.fcos.head import FcosOutputs
from cellvision.models.centermask2.fcos.losses import compute_fcos_losses
from cellvision.models.centermask2.fcos.targets import FcosTargets
from cellvision.models.centermask2.options import FcosLosses
from forked import run_two

SHAPES = [(4, 6), (2, 3)]
PLACES = 2 * (24 + 6)


def make_outputs(seed=0, batch=2, classes=3):
    generator = torch.Generator().manual_seed(seed)
    maps = [[torch.randn(batch, c, *shape, generator=generator) for shape in SHAPES] for c in (classes, 4, 1)]
    return FcosOutputs(
        class_logits=tuple(maps[0]), ltrb=tuple(each.relu() for each in maps[1]), centreness_logits=tuple(maps[2])
    )


def make_targets(positive, ignored=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(PLACES, dtype=torch.bool)
    mask[list(ignored)] = True
    return FcosTargets(
        positive=torch.tensor(positive, dtype=torch.int64),
        classes=torch.arange(len(positive)) % 3,
        ltrb=torch.rand(len(positive), 4, generator=generator) + 0.1,
        ignored=mask,
    )


def list_places(maps):
    """(all places, C) by level, image, row and column, written as loops."""
    return torch.stack([image[:, y, x] for level in maps for image in level for y, x in grid(image)])


def grid(image):
    return [(y, x) for y in range(image.shape[1]) for x in range(image.shape[2])]


POSITIVE = [0, 5, 23, 24, 50, 59]


def test_class_loss_is_the_focal_loss_of_all_places_per_positive():
    outputs, targets = make_outputs(), make_targets(POSITIVE, ignored=[1, 2, 40])
    truth = torch.zeros(PLACES, 3)
    truth[POSITIVE, [0, 1, 2, 0, 1, 2]] = 1
    losses = sigmoid_focal_loss(list_places(outputs.class_logits), truth, alpha=0.3, gamma=1.5)
    losses[[1, 2, 40]] = 0
    found = compute_fcos_losses(outputs, targets, FcosLosses(alpha=0.3, gamma=1.5))["loss_fcos_cls"]
    torch.testing.assert_close(found, losses.sum() / 6)


def test_class_weights_count_at_the_places_of_their_class_only():
    outputs, targets = make_outputs(), make_targets(POSITIVE)
    truth = torch.zeros(PLACES, 3)
    truth[POSITIVE, [0, 1, 2, 0, 1, 2]] = 1
    losses = sigmoid_focal_loss(list_places(outputs.class_logits), truth).sum(1)
    losses[POSITIVE] *= torch.tensor([0.5, 1.0, 4.0]).repeat(2)
    found = compute_fcos_losses(outputs, targets, FcosLosses(class_weights=(0.5, 1.0, 4.0)))["loss_fcos_cls"]
    torch.testing.assert_close(found, losses.sum() / 6)


def test_box_and_centreness_losses():
    outputs, targets = make_outputs(), make_targets(POSITIVE)
    ltrb = list_places(outputs.ltrb)[POSITIVE]
    left, top, right, bottom = targets.ltrb.T
    centreness = (
        torch.minimum(left, right)
        / torch.maximum(left, right)
        * torch.minimum(top, bottom)
        / torch.maximum(top, bottom)
    ).sqrt()
    corners = [torch.cat([-each[:, :2], each[:, 2:]], dim=1) for each in (ltrb, targets.ltrb)]
    boxes = generalized_box_iou_loss(*corners)
    found = compute_fcos_losses(outputs, targets, FcosLosses(smoothing=0))
    torch.testing.assert_close(found["loss_fcos_loc"], (boxes * centreness).sum() / centreness.sum())
    logits = list_places(outputs.centreness_logits)[POSITIVE, 0]
    torch.testing.assert_close(found["loss_fcos_ctr"], F.binary_cross_entropy_with_logits(logits, centreness))


@pytest.mark.parametrize("kind", ["giou", "iou", "linear_iou", "diou", "ciou"])
def test_without_positives_only_the_background_is_learned(kind):
    outputs = make_outputs()
    maps = [each.requires_grad_() for level in vars(outputs).values() for each in level]
    losses = compute_fcos_losses(outputs, make_targets([]), FcosLosses(box_loss=kind))
    background = sigmoid_focal_loss(list_places(outputs.class_logits), torch.zeros(PLACES, 3)).sum()
    torch.testing.assert_close(losses["loss_fcos_cls"], background)
    assert losses["loss_fcos_loc"].item() == losses["loss_fcos_ctr"].item() == 0
    sum(losses.values()).backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in maps)


def test_losses_of_half_precision_maps_are_computed_in_float32():
    outputs, targets = make_outputs(), make_targets(POSITIVE)
    halves = FcosOutputs(**{name: tuple(each.half() for each in maps) for name, maps in vars(outputs).items()})
    for name, loss in compute_fcos_losses(halves, targets, FcosLosses()).items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, compute_fcos_losses(outputs, targets, FcosLosses())[name], rtol=1e-2, atol=0)


def compute_part(rank):
    targets = make_targets(POSITIVE if rank == 0 else [], seed=rank)
    losses = compute_fcos_losses(make_outputs(seed=rank), targets, FcosLosses())
    return {name: value.item() for name, value in losses.items()}


@pytest.mark.slow
def test_two_processes_together_have_the_losses_of_one_with_both_batches():
    found = run_two(compute_part)
    separate = [make_outputs(seed=0), make_outputs(seed=1)]
    joined = FcosOutputs(
        **{
            name: tuple(torch.cat(pair) for pair in zip(*(vars(each)[name] for each in separate), strict=True))
            for name in vars(separate[0])
        }
    )
    # the positives of the first batch of two, in a batch of four: the second level begins later
    places = [place if place < 48 else place + 48 for place in POSITIVE]
    first = make_targets(POSITIVE)
    both = FcosTargets(
        positive=torch.tensor(places), classes=first.classes, ltrb=first.ltrb, ignored=torch.zeros(2 * PLACES) > 0
    )
    for name, expected in compute_fcos_losses(joined, both, FcosLosses()).items():
        assert [each[name] for each in found] == pytest.approx([expected.item()] * 2, rel=1e-5)
